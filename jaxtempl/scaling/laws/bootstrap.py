"""Bootstrap intervals of a fitted law: whole groups are resampled, and all resamples are refitted together.

The refits start at the optimum and use iteratively reweighted least squares with Levenberg's damping, so hundreds of
them take about as long as one.

Dims: R resamples, N points, P parameters, G groups.
"""

import functools
import typing
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats

from jaxtempl.scaling.laws.forms import PointwiseLaw
from jaxtempl.specs.interval import Interval

RESAMPLES = 400
LEVEL = 0.95
MAX_EXPONENT = 700.0  # largest logarithm that a float can exponentiate: bounds of intervals that nothing else bounds
MAX_ITERATIONS = 200  # refits converge slowly along the valleys of some laws


def resample_counts(group: Int[np.ndarray, " N"], seed: int, resamples: int) -> Float[np.ndarray, "R N"]:
    """Return how often each point occurs in each resample of whole groups."""
    unique, index = np.unique(group, return_inverse=True)
    random = np.random.default_rng(seed + 1)
    return random.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), resamples)[:, index].astype(float)


def percentile_interval(value: Any, resampled: Shaped[np.ndarray, " R"], widening: float, logarithm: bool) -> Interval:
    """Return the percentile interval of a statistic, widened for the fitted parameters.

    Args:
        value: Statistic of all points.
        resampled: Statistic of each resample.
        widening: Factor on the distance from the value to each bound (see `widening`).
        logarithm: Whether the statistic is a logarithm; the interval is then of its exponential.
    """
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    ends = (value, value - widening * (value - low), value + widening * (high - value))
    return Interval(*(float(np.exp(min(end, MAX_EXPONENT)) if logarithm else end) for end in ends))


@functools.cache
def widening(groups: int, parameters: int) -> float:
    """Return the small-sample correction of an interval (Hesterberg, 2015, section 5.3).

    It replaces the normal quantile by Student's t and accounts for the degrees of freedom of the fitted parameters.
    """
    freedom = max(groups - parameters, 1)
    quantile = (1 + LEVEL) / 2
    return float(stats.t.ppf(quantile, freedom) / stats.norm.ppf(quantile) * np.sqrt(groups / freedom))


def refit(law: PointwiseLaw, log_y: Any, delta: float, theta: Any, counts: Any) -> Float[np.ndarray, "R P"]:
    """Return the optimum of the Huber loss for each resample.

    Args:
        law: Law at the points.
        log_y: Logarithms of the measurements [N].
        delta: Threshold of the Huber loss.
        theta: Starting value of all refits [P].
        counts: Weight of each point in each resample [R, N].
    """
    best = np.tile(theta, (len(counts), 1))
    damping = np.full(len(counts), 1e-3)
    loss, slopes, weights, residuals = _weighted(law, log_y, delta, best, counts)
    for _ in range(MAX_ITERATIONS):
        step = _damped_step(slopes, weights, residuals, damping)
        tried = _weighted(law, log_y, delta, best + step, counts)
        better = tried[0] <= loss
        converged = (loss - tried[0] < 1e-9 * loss) & (better | (damping > 1e6))
        best = np.where(better[:, None], best + step, best)
        loss = np.where(better, tried[0], loss)
        slopes, weights, residuals = (
            np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(tried[1:], (slopes, weights, residuals), strict=True)
        )
        if converged.all():
            break
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
    return best


@typing.no_type_check  # called in the inner loop
def _weighted(law: PointwiseLaw, log_y: Any, delta: float, theta: Any, counts: Any) -> tuple[Any, Any, Any, Any]:
    """Return each resample's Huber loss, and slopes, least-squares weights and residuals of its points."""
    value, slopes = law(theta)
    residuals = log_y - value
    size = np.abs(residuals)
    each = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
    loss = np.sum(counts * each, axis=1)
    weights = counts * np.minimum(1, delta / np.maximum(size, 1e-300))
    return np.where(np.isfinite(loss), loss, np.inf), slopes, weights, residuals


@typing.no_type_check  # called in the inner loop
def _damped_step(slopes: Any, weights: Any, residuals: Any, damping: Any) -> Any:
    """Return the Levenberg-Marquardt step of each resample."""
    weighted = np.swapaxes(slopes * weights[..., None], 1, 2)
    normal = weighted @ slopes
    right = (weighted @ residuals[..., None])[..., 0]
    diagonal = np.einsum("rpp->rp", normal)
    damped = normal + np.eye(normal.shape[1])[None] * (damping[:, None] * (diagonal + 1e-12 * diagonal.max()))[:, None]
    step = np.linalg.solve(damped, right[..., None])[..., 0]
    return np.clip(np.nan_to_num(step), -1, 1)  # larger steps of exponents and log scales leave the valley
