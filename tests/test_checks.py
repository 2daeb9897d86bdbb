"""Checks before a verdict: published sample ratios, planted faults that are found, and sound data that pass."""

import numpy as np
import pytest
from scipy import stats

from jaxtempl.errors import UserError
from jaxtempl.experiments import checks, estimators


@pytest.mark.parametrize(
    ("counts", "weights", "p"),
    [
        ([502, 498], [0.5, 0.5], 0.8993431885613663),  # lukasvermeer/srm, docs/faq.md
        ([1000, 950, 1050, 1000], [0.25] * 4, 0.171797),  # lukasvermeer/srm, chrome-extension/tests
        ([1001000, 999000], [0.5, 0.5], 0.1573),  # the same
        ([821588, 815482], [0.5, 0.5], 1.8218e-06),  # Kohavi, Tang and Xu 2020, chapter 3
        ([850, 150], [0.9, 0.1], 1.3608e-07),  # lukasvermeer/srm: below .0001
    ],
)
def test_published_sample_ratios_are_reproduced(counts: list[int], weights: list[float], p: float) -> None:
    assert checks.ratio_p(counts, weights) == pytest.approx(p, rel=2e-4)
    arms = [f"v{i}" for i in range(len(counts))]
    found = checks.sample_ratio(dict(zip(arms, counts, strict=True)), dict(zip(arms, weights, strict=True)))
    assert found.passed == (p > 0.001)


def test_a_holdout_of_2_percent_is_no_mismatch_and_half_of_it_is() -> None:
    weights = {"holdout": 0.02, "treatment": 0.98}
    assert checks.sample_ratio({"holdout": 205, "treatment": 9795}, weights).passed
    found = checks.sample_ratio({"holdout": 100, "treatment": 9900}, weights)
    assert not found.passed
    assert "holdout 100 (2.0% due)" in found.finding
    assert found.finding.endswith("find the cause first")
    assert not checks.sample_ratio({"treatment": 10000}, weights).passed


def test_sound_ratios_fail_in_one_of_a_thousand() -> None:
    random = np.random.default_rng(0)
    held = random.binomial(10_000, 0.02, 600)
    failed = sum(checks.ratio_p([int(n), 10_000 - int(n)], [0.02, 0.98]) < checks.MISMATCH for n in held)
    assert failed <= stats.binom.ppf(0.9999, 600, 0.002)


def test_one_advocate_or_week_with_another_ratio_is_found() -> None:
    random = np.random.default_rng(1)
    groups, arms, weights = np.repeat(np.arange(150), 80), random.integers(0, 2, 12_000), np.array([0.5, 0.5])
    assert checks.sample_ratio_within("advocate", groups, arms, weights).passed
    arms[groups == 7] = np.arange(80) % 8 == 0
    found = checks.sample_ratio_within("advocate", groups, arms, weights)
    assert not found.passed
    assert "150 tested" in found.finding
    assert "(advocate 7)" in found.finding
    assert found.name == "sample ratio by advocate"


def test_a_ratio_that_fails_alone_passes_as_the_worst_of_a_hundred() -> None:
    groups, arms, weights = np.repeat(np.arange(100), 100), np.arange(10_000) % 2, np.array([0.5, 0.5])
    arms[:100] = np.arange(100) < 33  # p = .0007
    assert checks.sample_ratio_within("week", groups, arms, weights).passed
    assert not checks.sample_ratio_within("week", groups[:100], arms[:100], weights).passed


def test_small_groups_are_counted_and_not_tested() -> None:
    groups, arms = np.repeat(["a", "b"], [100, 9]), np.arange(109) % 2
    found = checks.sample_ratio_within("week", groups, arms, np.array([0.5, 0.5]))
    assert found.finding.startswith("1 tested")
    assert found.finding.endswith("1 with few pairs not tested")
    none = checks.sample_ratio_within("week", groups, arms, np.array([0.01, 0.99]))
    assert (none.passed, none.finding) == (True, "0 of 2 tested; 2 with few pairs not tested")


def test_pairs_in_two_arms_are_found() -> None:
    pairs = np.repeat(np.arange(50), 4)
    assert checks.reassigned_pairs(pairs, pairs % 2).passed
    arms = pairs % 2
    arms[:2] = 1 - arms[:2]
    found = checks.reassigned_pairs(pairs, arms)
    assert not found.passed
    assert found.finding.startswith("1 of 50 pairs are in several arms")


def test_replies_without_a_start_or_before_it_are_found() -> None:
    assert checks.complete_events(1000, 0, 0).passed
    assert checks.complete_events(1000, 5, 5).passed
    found = checks.complete_events(1000, 15, 5)
    assert not found.passed
    assert found.finding.startswith("15 of 1,000 replies have no start, 5 precede it (2.00%")


def test_clocks_that_run_ahead_are_found() -> None:
    assert checks.clock_skew(1000, 10).passed
    found = checks.clock_skew(1000, 11)
    assert not found.passed
    assert found.finding == "11 of 1,000 suggestions have events over 2 s ahead of the server (1.10%)"


def test_an_arm_that_changes_the_use_of_templates_is_found() -> None:
    random = np.random.default_rng(2)
    advocates, arms = random.integers(0, 40, 8000), random.integers(0, 2, 8000)
    tendency = random.uniform(0.7, 1, 40)[advocates]

    def check(used: np.ndarray) -> checks.Check:
        return checks.template_use(estimators.sums_by_cluster(used.astype(float), advocates, arms))

    assert check(random.random(8000) < tendency).passed
    found = check(random.random(8000) < tendency - 0.1 * arms)
    assert not found.passed
    assert found.finding.endswith("since selection times are of other replies")
    assert check(np.ones(8000, bool)).passed
    assert not check(arms == 1).passed


def test_no_events_pass_and_impossible_ratios_are_refused() -> None:
    assert checks.complete_events(0, 0, 0).passed
    assert checks.clock_skew(0, 0).passed
    for counts, weights, message in (
        ({"a": 3, "b": 4}, {"a": 0.5, "b": 0.5}, "an arm expects 3.5 pairs, and chi-square needs 5"),
        ({"a": 30, "c": 40}, {"a": 0.5, "b": 0.5}, "pairs have the arm 'c'; the configured arms are a, b"),
        ({"a": 30}, {"a": 1.0}, "1 arms have the weights"),
        ({"a": 30, "b": 30}, {"a": 1.0, "b": 0.0}, "each arm needs one above 0"),
    ):
        with pytest.raises(UserError, match=message):
            checks.sample_ratio(counts, weights)
