"""The paired comparison of two classifiers: by hand, against scipy, and by its error rate under no difference."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from jaxtempl.errors import UserError
from jaxtempl.evaluation import metrics, paired
from jaxtempl.evaluation.metrics import Bootstrap
from jaxtempl.evaluation.paired import PairedDifference


def drawn(gain: float, seed: int = 0, cases: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ranks of two classifiers and the case of each context; the first gains in a tenth of the contexts."""
    random = np.random.default_rng(seed)
    theirs = random.choice([0, 2, 4, 9], cases * 5)
    ours = random.choice([0, 2, 4, 9], cases * 5, p=[0.25 + gain, *[0.25 - gain / 3] * 3])
    return np.where(random.random(len(theirs)) < 0.1, ours, theirs), theirs, np.repeat(np.arange(cases), 5)


def test_the_difference_is_that_of_the_two_accuracies() -> None:
    ours, theirs, cases = drawn(0.4)
    for k, found in zip(metrics.TOPS, paired.compare(ours, theirs, Bootstrap(cases, 0)).values(), strict=True):
        assert found.value == pytest.approx((ours < k).mean() - (theirs < k).mean())
        assert found.low < found.value < found.high


def test_interval_and_p_value_equal_those_of_a_t_test_over_cases() -> None:
    ours, theirs, cases = drawn(0.1)
    by_case = np.bincount(cases, (ours < 1) * 1.0 - (theirs < 1)) / np.bincount(cases)
    expected = stats.ttest_1samp(by_case, 0)
    found = paired.compare(ours, theirs, Bootstrap(cases, 0))["top1"]
    assert tuple(found)[1:3] == pytest.approx(tuple(expected.confidence_interval()), abs=0.003)
    assert found.p == pytest.approx(float(expected.pvalue), abs=0.03)


def clustered(gain: float, seed: int, cases: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return cases of 1 to 9 contexts, mostly of one outcome; the first gains `gain` in top-1."""
    random = np.random.default_rng(seed)
    case = np.repeat(np.arange(cases), random.integers(1, 10, cases))
    chances = [0.3 - gain / 2, 0.4, 0.3 + gain / 2]
    shared, single = (random.choice([-1, 0, 1], size, p=chances) for size in (cases, len(case)))
    outcome = np.where(random.random(len(case)) < 0.8, shared[case], single)
    return np.where(outcome < 0, 9, 0), np.where(outcome > 0, 9, 0), case


def test_intervals_of_clustered_contexts_cover_the_true_difference_at_their_level() -> None:
    """If the contexts were resampled instead of the cases, 41 of 60 intervals would cover it."""
    covered = 0
    for seed in range(60):
        ours, theirs, cases = clustered(0.1, seed, cases=60)
        found = paired.compare(ours, theirs, Bootstrap(cases, seed))["top1"]
        covered += found.low <= 0.1 <= found.high
    assert covered >= 52  # 57 expected


def test_the_interval_equals_that_of_scipy_and_the_p_value_that_of_flipped_signs_of_cases() -> None:
    ours, theirs, cases = clustered(0.14, 1, cases=100)
    sums, sizes = np.bincount(cases, (ours < 1) * 1.0 - (theirs < 1)), np.bincount(cases)
    found = paired.compare(ours, theirs, Bootstrap(cases, 0))["top1"]
    expected = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        n_resamples=2000,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)
    signs = np.random.default_rng(0).choice([-1, 1], (5000, len(sums)))
    assert found.p == pytest.approx((abs(signs @ sums) >= abs(sums.sum())).mean(), abs=0.02)
    assert 0.01 < found.p < 0.3


def test_pairing_resolves_a_gain_that_two_intervals_do_not() -> None:
    ours, theirs, cases = drawn(0.3)
    bootstrap = Bootstrap(cases, 0)
    separate = [bootstrap.mean((ranks < 1).astype(float)) for ranks in (ours, theirs)]
    assert separate[0].low < separate[1].high
    assert paired.compare(ours, theirs, bootstrap)["top1"].p < 0.01


def test_equal_classifiers_have_a_p_value_of_1() -> None:
    _, ranks, cases = drawn(0)
    assert paired.compare(ranks, ranks, Bootstrap(cases, 0))["top1"] == (0, 0, 0, 1)


def test_p_values_below_a_level_are_about_as_frequent_as_the_level_if_nothing_differs() -> None:
    found = []
    for seed in range(100):
        ours, theirs, cases = drawn(0, seed, cases=60)
        found.append(paired.compare(ours, theirs, Bootstrap(cases, seed))["top1"].p)
    assert 1 < sum(p < 0.1 for p in found) < 22  # about 10 of 100


def test_a_difference_is_printed_in_percentage_points() -> None:
    assert str(PairedDifference(0.021, 0.004, 0.0385, 0.03)) == "+2.1 [+0.4, +3.9], p = 0.03"
    assert str(PairedDifference(-0.021, -0.03, -0.01, 0.002)) == "-2.1 [-3.0, -1.0], p < 0.01"


def test_two_prediction_files_are_compared(tmp_path: Path) -> None:
    def write(name: str, tops: list[list[str]], first: int = 1) -> Path:
        lines = [{"case_id": f"c{i % 2}", "message": first + i, "label": "a", "top": t} for i, t in enumerate(tops)]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path / name

    ours = write("ours.jsonl", [["a", "b"], ["b", "a"], ["b", "c"], ["a", "b"]])
    theirs = write("theirs.jsonl", [["b", "c"], ["b", "a"], ["a", "c"], ["b", "a"]])
    found = paired.compare_predictions(ours, theirs)
    assert (found["top1"].value, found["top3"].value) == (0.25, 0.0)
    with pytest.raises(UserError, match="are of different contexts; evaluate both runs on one split of one dataset"):
        paired.compare_predictions(ours, write("other.jsonl", [["a"]] * 4, first=2))
