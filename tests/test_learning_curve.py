"""The number of labels from which a run passes a baseline, on curves whose crossing is known."""

import math

import numpy as np
import pytest

from jaxtempl.evaluation import learning_curve
from jaxtempl.evaluation.metrics import Bootstrap

CASES = 400
LABELS = [1000, 500, 2000]  # the evaluated run is first


def drawn(gaps: list[float], seed: int = 0, cases: int = CASES) -> np.ndarray:
    """Return the differences in hits of runs [N P], two contexts a case, with the expected values `gaps`."""
    random = np.random.default_rng(seed)
    return np.stack([random.choice([-1, 0, 1], 2 * cases, p=[0.1 - g / 2, 0.8, 0.1 + g / 2]) for g in gaps], axis=1)


def passes(differences: np.ndarray, labels: list[int] = LABELS) -> learning_curve.Interval:
    bootstrap = Bootstrap(np.repeat(np.arange(len(differences) // 2), 2), 0)
    return learning_curve.passes(labels, differences.astype(float), bootstrap)


def on_line(slope: float, crossing: float, labels: list[int] = LABELS) -> list[float]:
    return [slope * math.log(count / crossing) for count in labels]


def test_the_crossing_is_that_of_the_line_by_least_squares() -> None:
    differences = drawn(on_line(0.05, 4000))
    slope, level = np.polyfit(np.log(LABELS), differences.mean(axis=0), 1)
    found = passes(differences)
    assert found.value == pytest.approx(math.exp(-level / slope))
    assert found.low < found.value
    assert math.isnan(found.high) or found.high > found.value


def test_intervals_cover_the_true_crossing_at_their_level() -> None:
    covered = 0
    for seed in range(40):
        found = passes(drawn(on_line(0.09, 4000), seed, cases=120))
        covered += found.low <= 4000 and not found.high < 4000  # NaN: beyond the limit
    assert covered >= 34  # 38 expected


def exact(misses: list[int]) -> np.ndarray:
    """Return differences [N P] in which each run misses exactly so many contexts that the baseline hits."""
    return -1 * np.stack([np.arange(2 * CASES) < count for count in misses], axis=1)


def test_nothing_is_predicted_beyond_eight_times_the_labels() -> None:
    assert passes(exact([30, 22]), [1000, 2000]).value == pytest.approx(2000 * 2 ** (22 / 8))  # 13,454
    assert math.isnan(passes(exact([30, 23]), [1000, 2000]).value)  # 2000 x 2^(23 / 7) = 19,500
    assert math.isnan(passes(exact([20, 20]), [1000, 2000]).value)
    assert math.isnan(passes(exact([20, 30]), [1000, 2000]).value)


def test_a_run_that_is_ahead_passes_at_its_labels() -> None:
    assert passes(drawn([0.08, 0.02, 0.1])).value == pytest.approx(1000)
    assert passes(drawn([0.08, 0.1, 0.02])).value == pytest.approx(1000)


def test_the_curve_holds_the_points_in_the_order_of_labels() -> None:
    ranks = [np.array([0, 9, 9, 9]), np.array([9, 9, 9, 9]), np.array([0, 0, 9, 9])]
    baseline = np.array([9, 9, 9, 0])
    pairs = [(ours, baseline) for ours in ranks]
    found = learning_curve.fit(LABELS, pairs, 1, Bootstrap(np.arange(4), 0))
    assert [(p["labels"], p["difference"].value) for p in found["points"]] == [(500, -0.25), (1000, 0), (2000, 0.25)]
    assert found["limit"] == 16_000
    assert found["passes"].value == pytest.approx(1000)
