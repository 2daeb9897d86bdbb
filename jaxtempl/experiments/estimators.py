"""Compare two arms: intervals clustered by advocate or pair, CUPED, and the naive Welch test next to them.

All clustered estimates come from sums per cluster and arm, so interactions can be read in one pass.

A mean is a ratio of sums: of times over their number, or of time saved over case time. By the delta method, a ratio's
influence is the sum of its residuals, so means, ratios and their logarithms share one variance: CR2 (Bell and McCaffrey
2002) with the degrees of freedom of Imbens and Kolesar (2016), which hold with few and unequal clusters.

Dims: G clusters, A arms, N interactions.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxtempl.errors import UserError

LEVEL = 0.95  # of every interval


class ClusterSums(NamedTuple):
    """Sums per cluster and arm; a cluster may be in one arm or in several.

    Attributes:
        totals: Sums of the numerator, such as seconds.
        weights: Sums of the denominator, such as the number of interactions.
    """

    totals: Float[np.ndarray, "G A"]
    weights: Float[np.ndarray, "G A"]


class Estimate(NamedTuple):
    """An estimate with its 95 % confidence interval and the two-sided p-value of zero.

    Attributes:
        value: The estimate.
        low: Lower bound.
        high: Upper bound.
        p: Two-sided p-value.
        se: Standard error.
        df: Degrees of freedom of the t distribution.
    """

    value: float
    low: float
    high: float
    p: float
    se: float
    df: float


class Cuped(NamedTuple):
    """A difference of means adjusted by an earlier mean of each cluster.

    Attributes:
        estimate: The adjusted difference.
        theta: Coefficient of the earlier mean.
        variance_kept: Variance of the adjusted difference over that of the plain one; below 1 is a gain.
    """

    estimate: Estimate
    theta: float
    variance_kept: float


class Sample(NamedTuple):
    """Size, mean and variance of one arm's interactions."""

    n: int
    mean: float
    variance: float

    @classmethod
    def of(cls, values: Float[np.ndarray, " N"]) -> "Sample":
        """Return the size, mean and unbiased variance of values.

        Raises:
            UserError: There are fewer than two.
        """
        if len(values) < 2:
            raise UserError(f"an arm has {len(values)} interactions, and a variance needs two or more: wait for more")
        return cls(len(values), float(values.mean()), float(values.var(ddof=1)))


def sums_by_cluster(
    values: Float[np.ndarray, " N"], clusters: np.ndarray, arms: np.ndarray, weights: np.ndarray | None = None
) -> ClusterSums:
    """Return the sums of interactions by cluster and arm.

    Args:
        values: Numerator of each interaction.
        clusters: Cluster of each interaction, from 0.
        arms: Arm of each interaction, 0 or 1.
        weights: Denominator of each interaction (default: 1, so that the ratio is a mean).
    """
    shape, cell = (int(clusters.max()) + 1, 2), 2 * clusters + arms
    total, weight = (np.bincount(cell, each, shape[0] * 2).reshape(shape) for each in (values, weights))
    return ClusterSums(total, weight.astype(float))


def difference(sums: ClusterSums) -> Estimate:
    """Return the difference of the arms' means or ratios, the second minus the first.

    Raises:
        UserError: An arm has fewer than two clusters, a sum is not finite, or the residuals have no variance.
    """
    means = _means(sums)
    return _contrast(sums, float(means[1] - means[0]), np.array([-1.0, 1.0]))


def log_ratio(sums: ClusterSums) -> Estimate:
    """Return the logarithm of the second arm's mean over the first's; its exponential minus 1 is the relative change.

    Raises:
        UserError: A mean is not positive, or as for `difference`.
    """
    means = _means(sums)
    if not (means > 0).all():
        raise UserError(f"an arm has the mean {means.min():.4g}, and a logarithm needs a positive one; check the times")
    return _contrast(sums, math.log(means[1] / means[0]), np.array([-1, 1]) / means)


def mean(sums: ClusterSums) -> Estimate:
    """Return the mean or ratio of a single arm.

    Raises:
        UserError: As for `difference`.
    """
    return _contrast(sums, float(_means(sums)[0]), np.ones(1))


def combination(ratios: ClusterSums, value: float, gradient: Float[np.ndarray, " A"]) -> Estimate:
    """Return a function of several ratios, such as a saving as a share of case time, by the delta method.

    Ratios of different units have different variances, so each is scaled to residuals of variance 1 a unit of weight;
    the degrees of freedom then weigh them by what they add to the variance.

    Args:
        ratios: Sums of each ratio's numerator and denominator; all share the clusters.
        value: The function at the ratios.
        gradient: Its gradient there.

    Raises:
        UserError: As for `difference`.
    """
    residuals = ratios.totals - ratios.weights * _means(ratios)
    scale = np.sqrt((residuals**2).sum(0) / ratios.weights.sum(0))
    scale = np.where(scale > 0, scale, 1.0)
    return _contrast(ClusterSums(ratios.totals / scale, ratios.weights), value, gradient * scale)


def cuped(sums: ClusterSums, earlier: Float[np.ndarray, " G"]) -> Cuped:
    """Return the difference adjusted by each cluster's mean from before the experiment (Deng et al. 2013).

    Theta is the coefficient of a regression of the interactions on their cluster's earlier mean.

    Args:
        sums: Sums of the experiment.
        earlier: Earlier mean of each cluster; NaN for a new one, which is not adjusted.

    Raises:
        UserError: All earlier means are equal or unknown, or as for `difference`.
    """
    weights = sums.weights.sum(1) * np.isfinite(earlier)
    known = np.where(np.isfinite(earlier), earlier, 0.0)
    deviation = np.where(np.isfinite(earlier), known - (weights @ known) / max(weights.sum(), 1), 0.0)
    spread = float(weights @ deviation**2)
    if not spread > 0:
        raise UserError("the earlier means of all clusters are equal or unknown; CUPED needs an earlier period")
    theta = float(deviation @ sums.totals.sum(1)) / spread
    adjusted = difference(ClusterSums(sums.totals - theta * deviation[:, None] * sums.weights, sums.weights))
    return Cuped(adjusted, theta, (adjusted.se / difference(sums).se) ** 2)


def naive_welch(first: Sample, second: Sample) -> Estimate:
    """Return the difference of means by Welch's test, which takes every interaction as independent.

    It is shown for comparison with published figures only: an advocate's times are correlated, so that it rejects two
    equal arms in far more than 5 % of experiments.

    Raises:
        UserError: Neither arm has any variance.
    """
    parts = np.array([first.variance / first.n, second.variance / second.n])
    variance = float(parts.sum())
    if not variance > 0:
        raise UserError("all times of each arm are equal, so there is no variance to test by; check the events")
    df = variance**2 / float((parts**2 / np.array([first.n - 1, second.n - 1])).sum())
    return _estimate(second.mean - first.mean, variance, df)


def cap_times(seconds: Float[np.ndarray, " N"], cap: float) -> tuple[Float[np.ndarray, " N"], float]:
    """Return times of at most `cap` seconds, and the share of times that were longer."""
    return np.minimum(seconds, cap), float((seconds > cap).mean())


def effective_clusters(sums: ClusterSums) -> float:
    """Return the number of equal clusters with the same sum of squared weights (Kish 1965)."""
    weights = sums.weights.sum(1)
    return float(weights.sum() ** 2 / (weights**2).sum())


def _means(sums: ClusterSums) -> Float[np.ndarray, " A"]:
    """Return the arms' means, after checking that a variance exists."""
    if not (np.isfinite(sums.totals).all() and np.isfinite(sums.weights).all() and (sums.weights >= 0).all()):
        raise UserError("a sum is negative or not finite; remove interactions without a time")
    clusters = (sums.weights > 0).sum(0)
    if clusters.min() < 2:
        found = " and ".join(str(int(count)) for count in clusters)
        raise UserError(f"the arms have {found} clusters; an interval needs two or more in each: wait for more data")
    return sums.totals.sum(0) / sums.weights.sum(0)


def _contrast(sums: ClusterSums, value: float, gradient: Float[np.ndarray, " A"]) -> Estimate:
    """Return an estimate with the given gradient by the arms' means.

    The design has one indicator an arm, so a cluster's leverage in an arm is its share of the arm's weight, and CR2's
    matrices reduce to the divisions below. The degrees of freedom are tr(M)^2 / tr(M^2) with M = D - S S', for equal
    and independent errors.
    """
    size = sums.weights.sum(0)
    residuals = sums.totals - sums.weights * _means(sums)
    scale = gradient / size / np.sqrt(1 - sums.weights / size)
    variance = float(((scale * residuals).sum(1) ** 2).sum())
    if not variance > float(np.finfo(float).eps) ** 2 * value**2:
        raise UserError("all clusters have the same mean in each arm, so there is no variance; check the times")
    own = (sums.weights * scale**2).sum(1)
    shared = sums.weights * scale / np.sqrt(size)
    cross = shared.T @ shared
    trace = own.sum() - np.trace(cross)
    squares = (own**2).sum() - 2 * (own[:, None] * shared**2).sum() + (cross**2).sum()
    return _estimate(value, variance, float(trace**2 / squares))


def _estimate(value: float, variance: float, df: float) -> Estimate:
    se = math.sqrt(variance)
    margin = float(stats.t.ppf(0.5 + LEVEL / 2, df)) * se
    return Estimate(value, value - margin, value + margin, float(2 * stats.t.sf(abs(value) / se, df)), se, df)
