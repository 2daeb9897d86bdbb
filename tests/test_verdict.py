"""The sentence of a comparison, for each outcome, and the number of cases that a difference needs."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from jaxtempl.evaluation import verdict
from jaxtempl.evaluation.paired import PairedDifference
from jaxtempl.specs.interval import Interval

BETTER = PairedDifference(0.021, 0.004, 0.038, 0.02)
WORSE = PairedDifference(-0.015, -0.028, -0.002, 0.03)
CLOSE = PairedDifference(0.01, -0.01, 0.03, 0.3)
BEHIND = PairedDifference(-0.01, -0.03, 0.01, 0.3)
EQUAL = PairedDifference(0, 0, 0, 1)


def clause(difference: PairedDifference, passes: Interval | None = None) -> str:
    """Return the clause of one difference, out of a sentence of two."""
    curves: dict[str, Any] = {} if passes is None else {"top1": {"passes": passes, "limit": 16_000}}
    pairs = {"top1": ("the n-grams", difference), "top5": ("the majority", BETTER)}
    start, end = "This run is ", " and better than the majority in top-5 (+2.1 points)."
    found = verdict.sentence(pairs, 300, curves)
    assert found.startswith(start)
    assert found.endswith(end)
    return found[len(start) : -len(end)]


@pytest.mark.parametrize(
    ("difference", "passes", "expected"),
    [
        (BETTER, None, "better than the n-grams in top-1 (+2.1 points)"),
        (BETTER, Interval(1000.0, 1000.0, 1000.0), "better than the n-grams in top-1 (+2.1 points)"),
        (WORSE, None, "worse than the n-grams in top-1 (-1.5 points)"),
        (
            WORSE,
            Interval(8_912.0, 6_120.4, 14_499.0),
            "worse than the n-grams in top-1 (-1.5 points; by its learning curve it passes at about 8,900 labels "
            "[6,100, 14,000])",
        ),
        (
            WORSE,
            Interval(8_912.0, 6_120.4, math.nan),
            "worse than the n-grams in top-1 (-1.5 points; by its learning curve it passes at about 8,900 labels "
            "[6,100, more than 16,000])",
        ),
        (
            WORSE,
            Interval(math.nan, 6_120.4, math.nan),
            "worse than the n-grams in top-1 (-1.5 points; by its learning curve it stays behind up to 16,000 labels, "
            "beyond which nothing is predicted)",
        ),
        (
            CLOSE,
            Interval(1000.0, 1000.0, 1000.0),
            "not distinguishable from the n-grams in top-1 (+1.0 points; a difference of this size needs about 2,500 "
            "cases, 8.2 times as many)",
        ),
        (
            BEHIND,
            Interval(950.0, 900.0, 990.0),
            "not distinguishable from the n-grams in top-1 (-1.0 points; a difference of this size needs about 2,500 "
            "cases, 8.2 times as many; by its learning curve it passes at about 950 labels [900, 990])",
        ),
        (
            EQUAL,
            None,
            "not distinguishable from the n-grams in top-1 (+0.0 points; no difference was observed in 300 cases)",
        ),
    ],
)
def test_each_outcome_has_its_clause(difference: PairedDifference, passes: Interval | None, expected: str) -> None:
    assert clause(difference, passes) == expected


def test_the_needed_cases_give_a_power_of_80_percent() -> None:
    """A t-test finds the difference in 80 % of samples of that many cases."""
    cases, error = 300, (CLOSE.high - CLOSE.low) / (2 * 1.96)
    needed = verdict.needed_cases(CLOSE, cases)
    assert needed is not None
    spread = error * math.sqrt(cases)  # standard deviation of a case
    samples = np.random.default_rng(0).normal(CLOSE.value, spread, (500, needed))
    assert (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.05)
