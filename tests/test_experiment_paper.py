"""The world `paper` gives the paper's Table 5, Figures 4 to 6 and share of case time within their intervals."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import experiments_paper
from jaxtempl.experiments import aggregate, report, simulate, world
from jaxtempl.experiments.lifetime import InducedAgreement
from jaxtempl.experiments.templates import TemplateTrend
from jaxtempl.experiments.trend import MannKendall

REDUCED = {"pairs_a_week": 70, "advocates": 60, "templates": 12, "picks": 5.0, "holdout": 0.25}


def check(folder: Path, changes: dict[str, Any], missed: int) -> None:
    """Check that the intervals contain the world's numbers, with at most as many misses as chance explains."""
    settings = msgspec.structs.replace(world.read("paper"), **changes)
    simulate.simulate(settings, folder / "events.parquet", folder / "truth.parquet")
    found = aggregate.aggregate(str(folder / "events.parquet"))
    reported, tests = report.report(found), experiments_paper.table_5(found)
    claims = experiments_paper.claims(settings, tests, reported)
    share = ["share of case time"] if changes else []  # a pair of five picks has another case time
    assert [c.name for c in claims if not c.covered and c.name not in share] == []
    inside, weeks = experiments_paper.covered_weeks(settings, reported)
    assert weeks - inside <= missed
    assert all(test.by_advocate.value < 0 for test in tests) or changes
    assert isinstance(reported.trend, MannKendall)
    assert reported.trend.s > 0
    assert reported.trend.p < 0.05
    assert isinstance(reported.templates, TemplateTrend)
    assert reported.templates.tau.low > 0
    assert isinstance(reported.agreement, InducedAgreement)
    assert reported.agreement.induced.low < 0 < reported.agreement.induced.high
    experiments_paper.draw(reported, folder)
    assert len(list(folder.glob("*.png"))) == 3
    assert "## Table 5" in experiments_paper.page(MACHINE, settings, tests, claims, reported)


MACHINE = {
    **{"processor": "p", "cores": 1, "memory_gb": 1, "system": "s", "python": "3", "versions": {}},
    "load_before": 0.0,
}


def test_a_reduced_paper_world_has_the_papers_numbers(tmp_path: Path) -> None:
    check(tmp_path, REDUCED, missed=6)


@pytest.mark.slow
def test_the_paper_world_has_the_papers_numbers(tmp_path: Path) -> None:
    check(tmp_path, {}, missed=6)
