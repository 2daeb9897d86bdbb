"""`bin/experiment report`: simulated worlds whose truth it finds, the page, the format, refusals."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from masked import GOLDEN, masked

from jaxtempl.commands import experiment
from jaxtempl.errors import UserError
from jaxtempl.experiments import report, simulate, world
from jaxtempl.experiments.lifetime import InducedAgreement
from jaxtempl.experiments.report import LifetimeReport, NotEstimated


def simulated(folder: Path, name: str, **changes: Any) -> Path:
    changed = msgspec.structs.replace(world.read(name), **changes)
    simulate.simulate(changed, folder / "events.parquet", folder / "truth.parquet")
    return folder / "events.parquet"


@pytest.fixture(scope="module")
def feedback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feedback")
    return simulated(folder, "feedback", pairs_a_week=250, advocates=60, templates=20, picks=6.0, holdout=0.3)


@pytest.fixture(scope="module")
def written(feedback: Path) -> LifetimeReport:
    return report.write(str(feedback), feedback.parent / "report")


def test_the_induced_agreement_of_the_feedback_world_is_found(written: LifetimeReport) -> None:
    assert isinstance(written.agreement, InducedAgreement)
    rest = 1 - written.agreement.holdout.value
    assert written.agreement.followed.low < 0.25 < written.agreement.followed.high
    assert written.agreement.induced.low < 0.25 * rest < written.agreement.induced.high
    assert written.agreement.induced.low > 0


def test_the_saving_of_the_feedback_world_is_found(written: LifetimeReport) -> None:
    settings = world.read("feedback")
    saving = settings.seconds * settings.models[0].saving
    assert written.worth.selection.low < saving < written.worth.selection.high
    assert [model.version for model in written.models] == ["v1"]
    covered = [week.times.saving.low < saving < week.times.saving.high for week in written.weeks if week.times]
    assert sum(covered) >= 6


def test_the_report_has_its_format_and_the_page_its_figures(feedback: Path, written: LifetimeReport) -> None:
    content = json.loads((feedback.parent / "report" / "report.json").read_text())
    assert json.dumps(masked(content), indent=1) == (GOLDEN / "experiment_report.report.json").read_text().rstrip()
    page = (feedback.parent / "report" / "index.html").read_text()
    assert page.count("<svg") == 3
    for line in report.summary(written):
        assert line.replace("'", "&#39;") in page


def test_a_world_of_two_weeks_has_no_trend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = simulated(tmp_path, "null", pairs_a_week=150, advocates=20, templates=6, picks=3.0, holdout=0.3)
    experiment.main(["report", f"--events={events}", f"--out={tmp_path / 'out'}"])
    assert "Suggestions save" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "a trend needs three or more points" in content["trend"]["reason"]
    assert "a trend needs three or more points" in (tmp_path / "out" / "index.html").read_text()


def test_what_cannot_be_estimated_is_stated_on_the_page(written: LifetimeReport, tmp_path: Path) -> None:
    reason = NotEstimated("the reason")
    report.write_page(written._replace(agreement=reason, templates=reason), "e", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("cannot be estimated: the reason.") == 2


def test_events_without_a_holdout_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    events = simulated(tmp_path, "null", pairs_a_week=30, holdout=0.0)
    with pytest.raises(UserError, match="the report compares a holdout with other pairs"):
        experiment.main(["report", f"--events={events}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()
