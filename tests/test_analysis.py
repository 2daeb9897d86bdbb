"""`bin/experiment check` and `analyse`: estimates equal those of the rows, and faults withhold the verdict."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import statsmodels.api as sm
from masked import GOLDEN, masked
from scipy import stats

from jaxtempl import cli
from jaxtempl.commands import experiment
from jaxtempl.errors import UsageError, UserError
from jaxtempl.experiments import aggregate, analysis, comparison, simulate, validity, world
from jaxtempl.experiments.table5 import PAPER
from jaxtempl.experiments.world import SimulatedModel, SimulatedTest
from jaxtempl.serve.experiments import definition

FILE = """
holdout: {salt: demo-holdout, share: 0.1}
cap_seconds: 25
test:
  name: v1-v2
  salt: demo-v1-v2
  start: 2026-01-19T00:00:00Z
  end: 2026-02-01T00:00:00Z
  arms:
    v1: {bundle: bundles/v1, range: [0, 0.5]}
    v2: {bundle: bundles/v2, range: [0.5, 1]}
"""


class Analysed(NamedTuple):
    """Folder, rows of events, report and page of an analysis."""

    folder: Path
    rows: list[dict[str, Any]]
    report: dict[str, Any]
    page: str


def flags(folder: Path, *more: str) -> list[str]:
    return [f"--events={folder}/e.parquet", "--test=v1/v2", *more]


def analyse(folder: Path, *more: str, **changes: Any) -> Analysed:
    """Simulate and analyse a test after two weeks of one model."""
    models = (SimulatedModel("v1", 0.2, 0), SimulatedModel("v2", 0.5))
    values = {"weeks": 4, "pairs_a_week": 200, "advocates": 60, "picks": 4.0, "holdout": 0.1, "volume_cv": 0.3}
    values |= {"models": models, "tests": (SimulatedTest(("v1", "v2"), 2),), **changes}
    simulate.simulate(msgspec.structs.replace(world.read("null"), **values), folder / "e.parquet", folder / "t.parquet")
    (folder / "e.yaml").write_text(FILE)
    out = folder / "out"
    experiment.main(["analyse", *flags(folder, f"--out={out}", *more)])
    rows = pq.read_table(folder / "e.parquet").to_pylist()
    return Analysed(folder, rows, json.loads((out / "report.json").read_text()), (out / "index.html").read_text())


@pytest.fixture(scope="module")
def effect(tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    folder = tmp_path_factory.mktemp("effect")
    return analyse(folder, f"--experiments={folder}/e.yaml")


def selections(found: Analysed, arm: str) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the times, pairs and advocates of an arm's selections."""
    opened = {row["suggestion_id"]: row["event_at"] for row in found.rows if row["event"] == "opened"}
    rows = [row for row in found.rows if row["arm"] == arm and row["event"] in ("picked", "searched")]
    rows = [row for row in rows if row["experiment"] == "v1-v2"]
    times = [(row["event_at"] - opened[row["suggestion_id"]]).total_seconds() for row in rows]
    return np.array(times), [row["case_id"] for row in rows], [row["advocate_id"] for row in rows]


@pytest.mark.parametrize("kind", ["raw", "capped"])
def test_the_estimates_are_those_of_the_selections(effect: Analysed, kind: str) -> None:
    arms = [selections(effect, arm) for arm in ("v1", "v2")]
    times = [np.minimum(arm[0], 25.0) if kind == "capped" else arm[0] for arm in arms]
    found, values = effect.report[kind], np.concatenate(times)
    welch: Any = stats.ttest_ind(times[1], times[0], equal_var=False)
    assert found["means"] == pytest.approx([each.mean() for each in times])
    assert found["naive_welch"]["value"] == pytest.approx(times[1].mean() - times[0].mean())
    assert found["naive_welch"]["p"] == pytest.approx(float(welch.pvalue), rel=1e-6)
    design = sm.add_constant(np.repeat([0.0, 1.0], [len(each) for each in times]))
    for name, column in (("by_pair", 1), ("by_advocate", 2)):
        groups = np.unique(np.concatenate([arm[column] for arm in arms]), return_inverse=True)[1]
        fitted: Any = sm.OLS(values, design).fit(cov_type="cluster", cov_kwds={"groups": groups})
        assert found[name]["value"] == pytest.approx(fitted.params[1])
        assert found[name]["se"] == pytest.approx(fitted.bse[1], rel=0.03)
    assert found["log_ratio"]["value"] == pytest.approx(np.log(times[1].mean() / times[0].mean()))
    assert found["cuped"]["variance_kept"] < 1
    assert found["rerandomization"]["p"] == pytest.approx(1 / 2001)


def test_the_verdict_states_the_headline_and_its_interval(effect: Analysed) -> None:
    report = effect.report
    low, high = report["raw"]["by_advocate"]["low"], report["raw"]["by_advocate"]["high"]
    assert report["verdict"].startswith("v2 is faster than v1: ")
    assert f"95 % interval {low:+.2f} to {high:+.2f} s" in report["verdict"]
    assert report["verdict"].endswith("clustered by advocate).")
    assert (report["withheld"], report["headline"]) == (None, "by_advocate")
    assert report["effective_advocates"] > 40
    assert all(check["passed"] for check in report["checks"])
    for text in ("v2 is faster than v1", "Table 5", "model-v3/model-v4", "re-randomised", "naive Welch", "Accuracy in"):
        assert text in effect.page


def test_counts_use_and_the_accuracy_of_the_holdout_are_those_of_the_rows(effect: Analysed) -> None:
    days = {row["suggested_at"].date() for row in effect.rows if row["experiment"] == "v1-v2"}
    held = [row for row in effect.rows if row["arm"] == "holdout" and row["event"] == "searched"]
    held = [row for row in held if min(days) <= row["suggested_at"].date() <= max(days)]
    for k in (1, 3, 5):
        expected = np.mean([row["template"] in row["withheld_templates"][:k] for row in held])
        assert effect.report["holdout_top"][f"top{k}"]["value"] == pytest.approx(expected)
    for counts in effect.report["counts"]:
        rows = [row for row in effect.rows if (row["arm"], row["experiment"]) == (counts["arm"], "v1-v2")]
        assert counts["pairs"] == len({(row["advocate_id"], row["case_id"]) for row in rows})
        assert counts["selections"] == len(selections(effect, counts["arm"])[0])
        assert counts["replies"] == sum(row["event"] in ("picked", "searched", "freehand") for row in rows)
        assert counts["over_cap"] == (selections(effect, counts["arm"])[0] > 25).sum()
    assert effect.report["reply_time"]["value"] < 0
    assert abs(effect.report["template_use"]["value"]) < 0.1


def test_every_day_is_a_look_and_the_last_is_the_headline(effect: Analysed) -> None:
    looks, headline = effect.report["looks"], effect.report["raw"]["by_advocate"]
    assert len(looks) == len({look["day"] for look in looks}) >= 11
    last = looks[-1]
    assert [last["value"], last["fixed_low"], last["fixed_high"]] == pytest.approx(
        [headline["value"], headline["low"], headline["high"]]
    )
    assert all(look["low"] < look["fixed_low"] and look["fixed_high"] < look["high"] for look in looks)
    excluding = [look["day"] for look in looks if look["high"] < 0]
    assert effect.report["crossed"] == excluding[0]
    assert f"excludes zero from {excluding[0]} on" in effect.page


def test_a_report_has_the_golden_format(effect: Analysed) -> None:
    assert (
        json.dumps(masked(effect.report), indent=1) == (GOLDEN / "experiment_analysis.report.json").read_text().rstrip()
    )


def test_a_test_that_has_not_ended_and_few_advocates_change_the_verdict(tmp_path: Path) -> None:
    found = analyse(
        tmp_path, advocates=12, freehand=0.0, models=(SimulatedModel("v1", 0.2, 0), SimulatedModel("v2", 0.2)), weeks=3
    )
    assert found.report["headline"] == "rerandomization"
    assert found.report["verdict"].startswith("No difference between v1 and v2 is shown: ")
    assert "by re-randomised pairs, since the advocates count as " in found.report["verdict"]
    assert found.report["capped"] is None
    experiment.main(["analyse", *flags(tmp_path, f"--experiments={tmp_path}/e.yaml", f"--out={tmp_path}/b")])
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert report["verdict"].startswith("No verdict: the events end on 2026-01-2")
    assert report["withheld"].endswith("the test on 2026-02-01, and the decision is one look at its end")


def test_a_null_world_passes_the_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = msgspec.structs.replace(world.read("null"), pairs_a_week=200, picks=3.0)
    simulate.simulate(changed, tmp_path / "e.parquet", tmp_path / "t.parquet")
    assert cli.run(experiment.main, ["check", *flags(tmp_path, f"--out={tmp_path}/checks.json")]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == out.count("passed  ") == 7
    written = json.loads((tmp_path / "checks.json").read_text())
    assert (written["format"], [check["passed"] for check in written["checks"]]) == (1, [True] * 7)
    experiment.main(["analyse", *flags(tmp_path, f"--out={tmp_path}/out")])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["raw"]["cuped"] is None
    assert report["notes"] == [
        "CUPED: the earlier means of all clusters are equal or unknown; CUPED needs an earlier period"
    ]
    with pytest.raises(UserError, match="out exists already"):
        experiment.main(["analyse", *flags(tmp_path, f"--out={tmp_path}/out")])


def test_a_broken_randomisation_gets_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = msgspec.structs.replace(world.read("broken-randomisation"), pairs_a_week=1500, picks=2.0)
    simulate.simulate(changed, tmp_path / "e.parquet", tmp_path / "t.parquet")
    assert cli.run(experiment.main, ["check", *flags(tmp_path)]) == 1
    out, error = capsys.readouterr()
    failed = [line[8:].split("  ")[0] for line in out.splitlines() if line.startswith("FAILED")]
    assert {"sample ratio", "pairs in one arm", "complete events"} <= set(failed)
    assert error.startswith(f"error: v1/v2 failed {len(failed)} of 7 checks (sample ratio")
    assert error.count("\n") == 1
    experiment.main(["analyse", *flags(tmp_path, f"--out={tmp_path}/out")])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verdict"].startswith(f"No verdict: {len(failed)} of 7 checks failed: sample ratio (v1 ")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "No verdict" in page
    assert page.count(">failed<") == len(failed)


def test_a_pair_in_both_arms_counts_in_its_first_one(effect: Analysed) -> None:
    sums = aggregate.aggregate(f"{effect.folder}/e.parquet")
    pairs, days = sums.pairs, sums.pairs.day.copy()
    rows = np.flatnonzero(pairs.arm == sums.arms.index("v1"))[:9]
    days[rows] += 1
    late = pairs.take(rows)._replace(arm=np.full(9, sums.arms.index("v2")), day=days[rows])
    mixed = type(pairs)(*(np.concatenate(columns) for columns in zip(late, pairs, strict=True)))
    for each in (sums, sums._replace(pairs=mixed)):
        found = {c.name: c.finding for c in validity.run_checks(comparison.select(each, "v1/v2", None), None)}
        assert found["sample ratio"].startswith(f"v1 {effect.report['counts'][0]['pairs']} ")
    assert found["pairs in one arm"].startswith("9 of ")


def test_a_test_without_pairs_on_its_last_days_has_ended_when_the_events_have(effect: Analysed) -> None:
    sums, file = aggregate.aggregate(f"{effect.folder}/e.parquet"), definition.read(effect.folder / "e.yaml")
    assert file.test is not None
    is_weekend = (sums.pairs.day + 3) % 7 >= 5
    quiet = sums._replace(pairs=sums.pairs.take(~is_weekend | (sums.pairs.experiment == 0)))
    found = comparison.select(quiet, "v1/v2", file)
    assert found.rows.day.max() < found.last_day
    assert analysis.analyse(found, [], file.test.end).withheld is None
    assert analysis.analyse(found._replace(last_day=found.last_day - 1), [], file.test.end).withheld is not None


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("v1", "names no two arms; write --test=v3/v4, the baseline first"),
        ("v1/v1", "names no two arms"),
        ("holdout/v1", "is no A/B test; bin/experiment report compares"),
        ("", "names no two arms"),
    ],
)
def test_what_names_no_test_is_a_wrong_flag(test: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        experiment.main(["check", "--events=e.parquet", f"--test={test}"])


def test_events_without_the_test_are_refused_in_words(effect: Analysed) -> None:
    sums = aggregate.aggregate(f"{effect.folder}/e.parquet")
    with pytest.raises(UserError, match=r"no experiment has v1 and v3; the events have holdout: .*; v1-v2: v1, v2\."):
        comparison.select(sums, "v1/v3", None)
    named = definition.read(effect.folder / "e.yaml")
    assert named.test is not None
    others = (None, msgspec.structs.replace(named.test, name="x"))
    for other, text in zip(others, ("no test", "x: v1, v2"), strict=True):
        with pytest.raises(UserError, match=f"the file of experiments has {text}; the events are of v1-v2"):
            comparison.select(sums, "v1/v2", msgspec.structs.replace(named, test=other))


@pytest.mark.parametrize(
    ("row", "difference", "z", "se"),
    [(0, 0.45, 6.2268, 0.07227), (1, 0.46, 6.1246, 0.07511), (2, 0.73, 10.7941, 0.06763)],
)
def test_the_standard_errors_that_table_5_implies_are_known(row: int, difference: float, z: float, se: float) -> None:
    found = PAPER[row]
    assert -found.difference == pytest.approx(difference)
    assert (-found.difference / found.implied_se, found.implied_se) == pytest.approx((z, se), rel=1e-4)
