"""Trends over weeks and over templates: Mann-Kendall with ties, bootstrap over advocates, split-half reliability.

Dims: N points, G clusters, T templates.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxtempl.errors import UserError
from jaxtempl.specs.interval import Interval

LEVEL = 0.05  # at which an autocorrelation counts

Series = Float[np.ndarray, " N"]
ClusterWeights = Float[np.ndarray, " G"]  # how often each cluster is in a resample


class MannKendall(NamedTuple):
    """A Mann-Kendall test.

    Attributes:
        s: Concordant minus discordant pairs.
        variance: Variance of `s` without a trend.
        z: Standard score of `s`, corrected for continuity.
        p: Two-sided p-value.
        tau: Kendall's tau-b.
    """

    s: float
    variance: float
    z: float
    p: float
    tau: float


def mann_kendall(values: Series, by: Series | None = None) -> MannKendall:
    """Return the trend of values along `by`, with ties in both (Kendall 1970, section 4).

    Args:
        values: Values, such as savings.
        by: Values to order by, such as accuracies (default: the order of `values`, without ties).

    Raises:
        UserError: There are fewer than three points, one is not finite, or all are tied.
    """
    order = np.arange(len(values), dtype=float) if by is None else by
    _check(values, order)
    signs = [np.sign(each[:, None] - each[None]) for each in (values, order)]
    s = float((signs[0] * signs[1]).sum() / 2)
    n, ties = len(values), [np.unique(each, return_counts=True)[1].astype(float) for each in (values, order)]
    variance = (_triples(np.array([n])) - sum(map(_triples, ties))) / 18 + _joint(ties, n)
    kendall: Any = stats.kendalltau(values, order)
    return _tested(s, variance, float(kendall.statistic))


def hamed_rao(values: Series, lag: int | None = None) -> MannKendall:
    """Return the trend of an autocorrelated series (Hamed and Rao 1998).

    The variance is scaled by the significant autocorrelations of the ranks, after removing Sen's slope.

    Args:
        values: Values at equal distances, such as weeks.
        lag: Largest lag to correct for (default: all).

    Raises:
        UserError: The corrected variance is negative, or as for `mann_kendall`.
    """
    plain, n = mann_kendall(values), len(values)
    at = np.arange(n)
    ranks = stats.rankdata(values - sen_slope(values) * np.arange(1, n + 1))
    correlations = autocorrelations(ranks)
    counted = (np.abs(correlations) > stats.norm.isf(LEVEL / 2) / math.sqrt(n)) & (at > 0) & (at <= (lag or n))
    factor = 1 + 2 * float(((n - at) * (n - at - 1) * (n - at - 2) * correlations)[counted].sum()) / (
        n * (n - 1) * (n - 2)
    )
    if not factor > 0:
        raise UserError(
            f"the variance of Hamed and Rao is negative ({plain.variance * factor:.4g}) for these {n} points: their "
            "autocorrelations are too noisy; use the plain test, a smaller lag or more weeks"
        )
    return _tested(plain.s, plain.variance * factor, plain.tau)


def autocorrelations(values: Series) -> Series:
    """Return the autocorrelation at each lag, from 0 to one less than the number of values."""
    deviations = values - values.mean()
    return np.correlate(deviations, deviations, "full")[len(values) - 1 :] / (deviations @ deviations)


def sen_slope(values: Series) -> float:
    """Return the median slope of all pairs of points, per step."""
    first, second = np.triu_indices(len(values), 1)
    return float(np.median((values[second] - values[first]) / (second - first)))


def bootstrap_interval(
    statistic: Callable[[ClusterWeights], float],
    clusters: int,
    *,
    draws: int = 1000,
    seed: int = 0,
    centred: bool = False,
) -> Interval:
    """Return a statistic with its 95 % percentile interval over resampled clusters.

    Args:
        statistic: Function of the number of times that each cluster is in the resample.
        clusters: Number of clusters: advocates, since an advocate's rows are correlated across templates.
        draws: Number of resamples.
        seed: Seed of the resamples.
        centred: Whether to shift the resamples so that their median is the statistic: resampling adds noise, which
            attenuates a correlation of noisy values, so that its percentiles lie too low.

    Raises:
        UserError: There are fewer than two clusters, or a resample has no value.
    """
    if clusters < 2:
        raise UserError(f"a bootstrap needs two or more advocates, and there is {clusters}: wait for more data")
    random = np.random.default_rng(seed)
    resamples = random.multinomial(clusters, np.full(clusters, 1 / clusters), draws)
    values = np.array([statistic(weights.astype(float)) for weights in resamples])
    if not np.isfinite(values).all():
        missing = int((~np.isfinite(values)).sum())
        raise UserError(f"{missing} of {draws} resamples have no value; use templates that more advocates choose")
    found = statistic(np.ones(clusters))
    shift = found - float(np.median(values)) if centred else 0.0
    return Interval(found, *(float(bound) + shift for bound in np.quantile(values, [0.025, 0.975])))


def split_half_reliability(
    statistic: Callable[[ClusterWeights], Float[np.ndarray, " T"]], clusters: int, *, splits: int = 100, seed: int = 0
) -> float:
    """Return how well a statistic of each template repeats between halves of the advocates.

    It is the mean correlation over random halves, stepped up to all advocates by Spearman and Brown's formula. The
    reliabilities of both axes bound the correlation that a figure of one against the other can show.

    Args:
        statistic: Function of the weights of the clusters; it returns one value a template.
        clusters: Number of clusters.
        splits: Number of random splits.
        seed: Seed of the splits.

    Raises:
        UserError: There are fewer than four clusters, or a half has no value or no variance.
    """
    if clusters < 4:
        raise UserError(f"halves need four or more advocates, and there are {clusters}: wait for more data")
    random, found = np.random.default_rng(seed), list[float]()
    for _ in range(splits):
        half = random.permutation(clusters) < clusters // 2
        found.append(_correlation(statistic(half.astype(float)), statistic((~half).astype(float))))
    correlation = float(np.mean(found))
    if correlation <= -1 + 1e-9:
        raise UserError("the halves are perfectly opposed, so there is no reliability; check the templates")
    return 2 * correlation / (1 + correlation)


def _correlation(one: Float[np.ndarray, " T"], other: Float[np.ndarray, " T"]) -> float:
    deviations = [each - each.mean() for each in (one, other)]
    scale = math.sqrt(float((deviations[0] @ deviations[0]) * (deviations[1] @ deviations[1])))
    if not (math.isfinite(scale) and scale > 0):
        raise UserError("a half has no value for a template, or equal ones for all; use templates of more volume")
    return float(deviations[0] @ deviations[1]) / scale


def _check(values: Series, order: Series) -> None:
    if len(values) < 3:
        raise UserError(f"a trend needs three or more points, and there are {len(values)}: wait for more data")
    if not (np.isfinite(values).all() and np.isfinite(order).all()):
        raise UserError("a point of the trend is not a finite number; leave out weeks or templates without data")
    if np.ptp(values) == 0 or np.ptp(order) == 0:
        raise UserError(f"all {len(values)} points of the trend are equal, so there is no order to test")


def _triples(counts: Float[np.ndarray, " K"] | Any) -> float:
    return float((counts * (counts - 1) * (2 * counts + 5)).sum())


def _joint(ties: list[Any], n: int) -> float:
    """Return the terms of the variance that exist only with ties in both variables."""
    threes = math.prod(float((each * (each - 1) * (each - 2)).sum()) for each in ties)
    twos = math.prod(float((each * (each - 1)).sum()) for each in ties)
    return threes / (9 * n * (n - 1) * (n - 2)) + twos / (2 * n * (n - 1))


def _tested(s: float, variance: float, tau: float) -> MannKendall:
    z = (s - math.copysign(min(abs(s), 1), s)) / math.sqrt(variance)
    return MannKendall(s, variance, z, float(2 * stats.norm.sf(abs(z))), tau)
