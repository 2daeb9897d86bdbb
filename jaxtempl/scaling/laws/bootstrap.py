"""Bootstrap intervals of a fitted law: residuals of whole groups get random factors, and all resamples are refitted.

The wild cluster bootstrap (Cameron, Gelbach and Miller, 2008) keeps every point in every resample, so that a resample
never loses a size. Within a group, residuals may have an offset, follow a curve, or differ in variance. The refits
start at the optimum and use iteratively reweighted least squares with Levenberg's damping, so hundreds of them take
about as long as one.

Dims: R resamples, N points, P parameters, F free parameters, G groups.
"""

import functools
import typing
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

from jaxtempl.scaling.laws.forms import PointwiseLaw
from jaxtempl.specs.interval import Interval

RESAMPLES = 400
LEVEL = 0.95
MAX_EXPONENT = 700.0  # largest logarithm that a float can exponentiate: bounds of intervals that nothing else bounds
MAX_ITERATIONS = 200  # refits converge slowly along the valleys of some laws
MIN_GROUPS = 3  # fewer groups say nothing about the scatter between them
MIN_FREEDOM = 0.1  # smallest share of a group's residual that the fit is taken to leave


class Bounds(NamedTuple):
    """The smallest and the largest value of each parameter."""

    low: Float[np.ndarray, " P"]
    high: Float[np.ndarray, " P"]

    def clip(self, theta: Float[np.ndarray, "*R P"]) -> Float[np.ndarray, "*R P"]:
        """Return the nearest parameters within the bounds."""
        return np.clip(theta, self.low, self.high)

    def free(self, theta: Float[np.ndarray, " P"]) -> Bool[np.ndarray, " P"]:
        """Return which parameters are not at a bound."""
        return (theta > self.low) & (theta < self.high)


def resample(
    fitted: Float[np.ndarray, " N"],
    residuals: Float[np.ndarray, " N"],
    slopes: Float[np.ndarray, "N F"],
    group: Int[np.ndarray, " N"],
    seed: int,
    resamples: int,
) -> Float[np.ndarray, "R N"]:
    """Return resampled logarithms of the measurements.

    Args:
        fitted: Logarithms of the predictions.
        residuals: Logarithms of measurements over predictions.
        slopes: Slopes of the predictions in the free parameters.
        group: Group of each point; fewer than `MIN_GROUPS` groups count as one group a point.
        seed: Seed of the signs and sizes.
        resamples: Number of resamples.
    """
    groups = _usable(group)
    random, shape = np.random.default_rng(seed + 1), (resamples, groups.max() + 1)
    # Signs keep the tails of single points, to which the Huber loss is fitted; of a few groups they give few samples.
    drawn = random.choice([-1.0, 1.0], shape) if shape[1] == len(group) else random.normal(size=shape)
    return fitted + drawn[:, groups] * _inflated(residuals, slopes, groups)


def _usable(group: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    unique, index = np.unique(group, return_inverse=True)
    return index.astype(int) if len(unique) >= MIN_GROUPS else np.arange(len(group))


def _inflated(
    residuals: Float[np.ndarray, " N"], slopes: Float[np.ndarray, "N F"], group: Int[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """Return the residuals of each group before the fit drew the curve towards them (Bell and McCaffrey, 2002)."""
    basis, size, _ = np.linalg.svd(slopes, full_matrices=False)
    basis = basis[:, size > 1e-8 * size.max(initial=0.0)]
    inflated = residuals.copy()
    for one in np.unique(group):
        chosen = group == one
        directions, values, _ = np.linalg.svd(basis[chosen], full_matrices=False)
        left = np.maximum(1 - values**2, MIN_FREEDOM)
        along = directions.T @ residuals[chosen]
        inflated[chosen] += directions @ (along * (1 / left - 1))
    return inflated


def percentile_interval(value: Any, resampled: Shaped[np.ndarray, " R"], widening: float, logarithm: bool) -> Interval:
    """Return the percentile interval of a statistic, widened for few groups; it contains the statistic.

    Args:
        value: Statistic of all points.
        resampled: Statistic of each resample.
        widening: Factor on the distance from the value to each bound (see `widening`).
        logarithm: Whether the statistic is a logarithm; the interval is then of its exponential.
    """
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(resampled) else (value, value)
    ends = (value, value - widening * max(value - low, 0.0), value + widening * max(high - value, 0.0))
    return Interval(*(float(np.exp(min(end, MAX_EXPONENT)) if logarithm else end) for end in ends))


@functools.cache
def widening(points: int, groups: int, parameters: int) -> float:
    """Return the small-sample correction of an interval (Hesterberg, 2015, section 5.3).

    It replaces the normal quantile by Student's t and accounts for the degrees of freedom: the fewer of those that the
    parameters leave and one less than the groups (Cameron and Miller, 2015, section VI).
    """
    units = points if groups < MIN_GROUPS else groups
    freedom = max(min(points - parameters, units - 1), 1)
    quantile = (1 + LEVEL) / 2
    return float(stats.t.ppf(quantile, freedom) / stats.norm.ppf(quantile) * np.sqrt(units / freedom))


def descend(
    law: PointwiseLaw, log_y: Any, delta: float, starts: Any, bounds: Bounds, iterations: int
) -> tuple[Float[np.ndarray, "R P"], Float[np.ndarray, " R"]]:
    """Return the optimum of the Huber loss that each start reaches, and its loss.

    Args:
        law: Law at the points.
        log_y: Logarithms of the measurements of each start [R, N].
        delta: Threshold of the Huber loss.
        starts: Starting values [R, P].
        bounds: Bounds of the parameters.
        iterations: Maximum number of iterations.
    """
    best = bounds.clip(starts)
    damping = np.full(len(best), 1e-3)
    loss, slopes, weights, residuals = _weighted(law, log_y, delta, best)
    for _ in range(iterations):
        candidate = bounds.clip(best + _damped_step(slopes, weights, residuals, damping, best, bounds))
        tried = _weighted(law, log_y, delta, candidate)
        better = tried[0] <= loss
        converged = (loss - tried[0] < 1e-9 * loss) & (better | (damping > 1e6))
        best = np.where(better[:, None], candidate, best)
        loss = np.where(better, tried[0], loss)
        slopes, weights, residuals = (
            np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(tried[1:], (slopes, weights, residuals), strict=True)
        )
        if converged.all():
            break
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
    return best, loss


@typing.no_type_check  # called in the inner loop
def _weighted(law: PointwiseLaw, log_y: Any, delta: float, theta: Any) -> tuple[Any, Any, Any, Any]:
    """Return each resample's Huber loss, and slopes, least-squares weights and residuals of its points."""
    value, slopes = law(theta)
    residuals = log_y - value
    size = np.abs(residuals)
    loss = np.sum(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)), axis=1)
    weights = np.minimum(1, delta / np.maximum(size, 1e-300))
    return np.where(np.isfinite(loss), loss, np.inf), slopes, weights, residuals


@typing.no_type_check  # called in the inner loop
def _damped_step(slopes: Any, weights: Any, residuals: Any, damping: Any, theta: Any, bounds: Bounds) -> Any:
    """Return the Levenberg-Marquardt step of each resample; a parameter stays at a bound that it is drawn towards."""
    downhill = (np.swapaxes(slopes, 1, 2) @ (weights * residuals)[..., None])[..., 0]
    held = ((theta <= bounds.low) & (downhill <= 0)) | ((theta >= bounds.high) & (downhill >= 0))
    slopes = slopes * ~held[:, None]
    weighted = np.swapaxes(slopes * weights[..., None], 1, 2)
    normal = weighted @ slopes
    right = np.where(held, 0.0, downhill)
    diagonal = np.einsum("rpp->rp", normal)
    ridge = damping[:, None] * (diagonal + 1e-12 * diagonal.max(initial=1e-300)) + held
    step = np.linalg.solve(normal + np.eye(normal.shape[1])[None] * ridge[:, None], right[..., None])[..., 0]
    return np.clip(np.nan_to_num(step), -1, 1)  # larger steps of exponents and log scales leave the valley
