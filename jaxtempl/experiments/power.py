"""Plan an experiment: what effect can be detected in how many days, with correlated interactions.

A pair's interactions are correlated, and pairs are assigned: the variance of a mean is that of independent interactions
times DEFF = 1 + ((1 + CV^2) m - 1) rho (Eldridge, Ashby and Kerry 2006).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

from jaxtempl.errors import UserError

ALPHA = 0.05
POWER = 0.8
MAX_DAYS = 3650
POINTS = 2000  # of the integral in `power`; its error is below 1e-4


class Traffic(NamedTuple):
    """Interactions, pairs and advocates of an experiment.

    Attributes:
        sd: Standard deviation of an interaction's time, in seconds.
        correlation: Intra-cluster correlation of a pair's interactions.
        picks: Mean interactions a pair.
        picks_cv: Coefficient of variation of the interactions a pair.
        pairs_a_day: Pairs a day, of both arms together.
        share: Share of the pairs in the second arm; the first arm has the rest.
        advocates: Number of advocates, which bounds the degrees of freedom.
    """

    sd: float
    correlation: float
    picks: float
    picks_cv: float
    pairs_a_day: float
    share: float
    advocates: int


class PowerPoint(NamedTuple):
    """Precision and power of an experiment of a number of days.

    Attributes:
        days: Days of the experiment.
        se: Standard error of the difference at its end, in seconds.
        detectable: Difference that is found with a power of 80 %, in seconds.
        power: Power for the effect of the plan.
    """

    days: float
    se: float
    detectable: float
    power: float


def design_effect(picks: float, picks_cv: float, correlation: float) -> float:
    """Return the variance of a mean over that of as many independent interactions.

    Args:
        picks: Mean size of a cluster.
        picks_cv: Coefficient of variation of the size.
        correlation: Intra-cluster correlation.

    Raises:
        UserError: The variance would be negative, or the correlation is not in [-1, 1].
    """
    effect = 1 + ((1 + picks_cv**2) * picks - 1) * correlation
    if not (effect > 0 and -1 <= correlation <= 1):
        raise UserError(
            f"an intra-cluster correlation of {correlation} with {picks:g} interactions a cluster has no positive "
            "variance; measure it again on more clusters, or plan with 0"
        )
    return effect


def standard_error(traffic: Traffic, days: float) -> float:
    """Return the standard error of the difference of means after some days, in seconds.

    Raises:
        UserError: A quantity of the traffic is not positive, or a share is not between 0 and 1.
    """
    positive = (traffic.sd, traffic.picks, traffic.pairs_a_day, days)
    if not (all(math.isfinite(value) and value > 0 for value in positive) and 0 < traffic.share < 1):
        raise UserError(
            f"sd, picks, pairs_a_day and days must be above 0 and share between 0 and 1; found {traffic.sd}, "
            f"{traffic.picks}, {traffic.pairs_a_day}, {days} and {traffic.share}"
        )
    count = traffic.picks * traffic.pairs_a_day * days
    effect = design_effect(traffic.picks, traffic.picks_cv, traffic.correlation)
    return traffic.sd * math.sqrt(effect / count * (1 / traffic.share + 1 / (1 - traffic.share)))


def power(effect: float, se: float, df: float, alpha: float = ALPHA) -> float:
    """Return the probability that a two-sided t test finds a true effect.

    Args:
        effect: True difference.
        se: Its standard error.
        df: Degrees of freedom.
        alpha: Significance level.
    """
    # scipy's noncentral t is NaN far from zero; this is its integral over the estimated standard error.
    errors = np.sqrt(stats.chi2.ppf((np.arange(POINTS) + 0.5) / POINTS, df) / df)
    critical, shift = float(stats.t.isf(alpha / 2, df)) * errors, effect / se
    return float((stats.norm.cdf(shift - critical) + stats.norm.cdf(-shift - critical)).mean())


def detectable_effect(se: float, df: float, wanted: float = POWER, alpha: float = ALPHA) -> float:
    """Return the smallest true difference that is found with a wanted power."""
    shift: Any = optimize.brentq(lambda shift: power(shift, 1.0, df, alpha) - wanted, 0.0, 1e3)
    return se * float(shift)


def power_curve(traffic: Traffic, effect: float, days: Sequence[float]) -> list[PowerPoint]:
    """Return what experiments of these days can detect.

    Args:
        traffic: Interactions and pairs of the experiment.
        effect: True difference to find, in seconds.
        days: Lengths of the experiment.

    Raises:
        UserError: There are fewer than two advocates, or as for `standard_error`.
    """
    df, points = _degrees_of_freedom(traffic), list[PowerPoint]()
    for length in days:
        se = standard_error(traffic, length)
        points.append(PowerPoint(length, se, detectable_effect(se, df), power(effect, se, df)))
    return points


def days_needed(traffic: Traffic, effect: float) -> int:
    """Return the days after which an effect is found with a power of 80 %.

    Raises:
        UserError: It takes more than ten years, or as for `power_curve`.
    """
    shift = detectable_effect(1.0, _degrees_of_freedom(traffic))
    days = math.ceil((standard_error(traffic, 1.0) * shift / effect) ** 2) if effect else math.inf
    if days > MAX_DAYS:
        raise UserError(
            f"an effect of {effect} s takes more than {MAX_DAYS} days; plan with a larger one or more pairs"
        )
    return int(days)


def _degrees_of_freedom(traffic: Traffic) -> float:
    if traffic.advocates < 2:
        raise UserError(f"an interval by advocate needs two or more advocates; found {traffic.advocates}")
    return traffic.advocates - 1.0
