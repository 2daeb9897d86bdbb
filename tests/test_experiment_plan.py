"""`bin/experiment plan`: the traffic of pairs, the report, and refusals in words."""

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from masked import GOLDEN, masked

from jaxtempl.commands import experiment
from jaxtempl.config.experiments import ExperimentPlanConfig
from jaxtempl.errors import UserError
from jaxtempl.experiments import aggregate, plan, simulate, world
from jaxtempl.experiments.plan import PairTimes

CONFIG = ExperimentPlanConfig(pairs_a_day=300.0, advocates=150)


def pair_times(sizes: np.ndarray, times: np.ndarray, arms: np.ndarray) -> PairTimes:
    pairs = np.repeat(np.arange(sizes.size), sizes)
    return PairTimes(sizes.astype(float), np.bincount(pairs, times), np.bincount(pairs, times**2), arms)


def test_the_correlation_within_pairs_is_found_in_spite_of_a_difference_of_arms() -> None:
    random = np.random.default_rng(0)
    sizes, arms = random.integers(1, 16, 4000), np.arange(4000) % 2
    pairs = np.repeat(np.arange(4000), sizes)
    times = 30 + 20 * arms[pairs] + 5 * (math.sqrt(0.21) * random.normal(size=4000)[pairs])
    times += 5 * math.sqrt(0.79) * random.normal(size=pairs.size)
    found = plan.estimated(pair_times(sizes, times, arms), days=20.0, advocates=99)
    assert found["sd"] == pytest.approx(5, rel=0.02)
    assert found["correlation"] == pytest.approx(0.21, abs=0.015)
    assert found["picks"] == pytest.approx(8, rel=0.02)
    assert found["picks_cv"] == pytest.approx(4.32 / 8, rel=0.03)
    assert (found["pairs_a_day"], found["advocates"]) == (200, 99)


def test_the_correlation_of_a_table_by_hand() -> None:
    """Pairs (1, 3), (5, 7) and (9, 11): MSB = 32, MSW = 2, n0 = 2."""
    times = pair_times(np.array([2, 2, 2]), np.array([1.0, 3, 5, 7, 9, 11]), np.zeros(3, int))
    assert plan.correlation(times) == (pytest.approx(math.sqrt(70 / 5)), pytest.approx(30 / 34))


@pytest.mark.parametrize(
    ("sizes", "times", "message"),
    [
        ([3], [1.0, 2, 3], "3 selection times of 1 pairs"),
        ([1, 1], [1.0, 2], "2 selection times of 2 pairs"),
        ([2, 2], [1.0, 1, 1, 1], "all selection times of an arm are equal"),
    ],
)
def test_times_without_a_correlation_are_refused(sizes: list[int], times: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan.correlation(pair_times(np.array(sizes), np.array(times), np.zeros(len(sizes), int)))


def test_the_curve_passes_the_wanted_power_at_the_days_needed() -> None:
    found = plan.plan(CONFIG)
    by_day = {point.days: point for point in found.curve}
    assert by_day[found.days_needed].power >= 0.8
    assert max(point.power for point in found.curve if point.days < found.days_needed) < 0.8
    assert by_day[found.days].detectable == found.detectable
    assert [point.power for point in found.curve] == sorted(point.power for point in found.curve)


def test_the_command_prints_the_plan_and_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment.main(["plan", "--pairs_a_day=300", "--advocates=150", f"--out={tmp_path}"])
    printed, found = capsys.readouterr().out, plan.plan(CONFIG)
    assert f"An effect of 0.45 s takes {found.days_needed:,} days." in printed
    assert len(printed.splitlines()) == 4 + len(found.curve) + 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["curve"][-1]["power"] == found.curve[-1].power
    assert json.dumps(masked(report), indent=1) == (GOLDEN / "experiment_plan.report.json").read_text().rstrip()
    assert f"{found.days_needed:,} days" in (tmp_path / "index.html").read_text()


def test_the_traffic_of_an_export_is_that_of_its_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = msgspec.structs.replace(world.read("null"), pairs_a_week=700, advocates=60, freehand=0.0, holdout=0.0)
    simulate.simulate(settings, tmp_path / "e.parquet", tmp_path / "t.parquet")
    found = plan.traffic_of(aggregate.aggregate(str(tmp_path / "e.parquet")))
    assert found["picks"] == pytest.approx(settings.picks, rel=0.03)
    assert found["picks_cv"] == pytest.approx(math.sqrt(settings.picks - 1) / settings.picks, rel=0.1)
    assert 12 < found["sd"] / (1 - settings.models[0].saving) < 22
    assert 0.15 < found["correlation"] < 0.35
    assert found["advocates"] > 50
    assert 90 < found["pairs_a_day"] < 120
    experiment.main(["plan", f"--events={tmp_path}/e.parquet", "--sd=3.5"])
    assert f"{found['advocates']} advocates" in (printed := capsys.readouterr().out)
    assert "standard deviation 3.5 s" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--advocates=150"], "pairs_a_day and days must be above 0"),
        (["--pairs_a_day=300"], "two or more advocates; found 0"),
        (["--pairs_a_day=300", "--advocates=150", "--effect=0"], "takes more than 3650 days"),
        (["--pairs_a_day=300", "--advocates=150", "--share=1"], "share between 0 and 1"),
    ],
)
def test_an_impossible_plan_is_refused_and_writes_nothing(flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        experiment.main(["plan", *flags, f"--out={tmp_path / 'plan'}"])
    assert list(tmp_path.iterdir()) == []
