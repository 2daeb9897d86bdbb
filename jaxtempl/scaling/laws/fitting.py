"""Fits of a law: Huber loss of log residuals, minimised by L-BFGS from many starts.

The loss follows Hoffmann et al., 2022 (arXiv 2203.15556, section 3.3), first with their threshold of 1e-3. Where the
points scatter more, the threshold is 1.345 robust standard deviations (Huber, 1981): a threshold far inside the noise
discards information. Starts lie on a seeded grid of the parameters that are not scales. The prediction is linear in
the scales, which are therefore solved for at each start (variable projection).

Dims: R resamples, N points, M other points, K variables, P parameters, S starts, G groups.
"""

import dataclasses
import typing
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, stats
from threadpoolctl import threadpool_limits

from jaxtempl.scaling.laws import bootstrap
from jaxtempl.scaling.laws.bootstrap import percentile_interval
from jaxtempl.scaling.laws.forms import Law, PointwiseLaw
from jaxtempl.specs.interval import Interval

PUBLISHED_DELTA = 1e-3
GRID_STARTS = 60
REFINED_STARTS = 8  # best grid starts that L-BFGS refines
MAX_LBFGS_ITERATIONS = 500

Logs = Float[np.ndarray, " N"]


class Observations(NamedTuple):
    """The points that a law is fitted to.

    Attributes:
        x: Variables, positive.
        y: Measured quantity, positive.
        group: Group of each point; the bootstrap resamples whole groups.
    """

    x: Float[np.ndarray, "N K"]
    y: Float[np.ndarray, " N"]
    group: Int[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: Law.
        data: Points of the fit.
        theta: Parameters in the fit's representation.
        resampled: Parameters of each resample, in the same representation.
    """

    law: Law
    data: Observations
    theta: Float[np.ndarray, " P"]
    resampled: Float[np.ndarray, "R P"]

    @property
    def parameters(self) -> dict[str, Interval]:
        """The parameters of the formula, with intervals."""
        return {
            p.name: self._interval(self.theta[i], self.resampled[:, i], p.logarithm)
            for i, p in enumerate(self.law.parameters)
        }

    def predict(self, x: Float[np.ndarray, "M K"]) -> list[Interval]:
        """Return the law's predictions at other points."""
        value, each = (self.law.log(theta, x)[0] for theta in (self.theta, self.resampled))
        return [self._interval(value[i], each[:, i], logarithm=True) for i in range(len(x))]

    def predict_ratio(self, before: Float[np.ndarray, " K"], after: Float[np.ndarray, " K"]) -> Interval:
        """Return the prediction at `after` over that at `before`; its interval is narrower than either's."""
        x = np.stack([before, after])
        value, each = (self.law.log(theta, x)[0] for theta in (self.theta, self.resampled))
        return self._interval(value[1] - value[0], each[:, 1] - each[:, 0], logarithm=True)

    def leverage(self, x: Float[np.ndarray, " K"]) -> Logs:
        """Return d log prediction / d log measurement for each point, linearised at the optimum."""
        slopes, at_x = (self.law.log(self.theta, points)[1] for points in (self.data.x, x[None]))
        return at_x[0] @ np.linalg.pinv(slopes, rcond=1e-8)

    def _interval(self, value: Any, resampled: Any, logarithm: bool) -> Interval:
        widening = bootstrap.widening(len(np.unique(self.data.group)), len(self.theta))
        return percentile_interval(value, resampled, widening, logarithm)

    @property
    def residuals(self) -> Logs:
        """Logarithms of measurements over predictions."""
        return np.log(self.data.y) - self.law.log(self.theta, self.data.x)[0]

    @property
    def r2(self) -> float:
        """Share of the variance of log y that the law explains."""
        log_y = np.log(self.data.y)
        return float(1 - np.sum(self.residuals**2) / max(np.sum((log_y - log_y.mean()) ** 2), 1e-300))


def fit(law: Law, data: Observations, seed: int = 0, resamples: int | None = None) -> Fit:
    """Fit a law to points.

    Args:
        law: Law to fit.
        data: Points, more than the law has parameters.
        seed: Seed of starts and resamples.
        resamples: Number of bootstrap resamples (default: `bootstrap.RESAMPLES`).
    """
    log_y, at_points = np.log(data.y), law.at(data.x)
    with threadpool_limits(1):  # threads only wait for one another on matrices this small
        theta = _minimise(at_points, log_y, PUBLISHED_DELTA, _starts(law, data, seed))
        delta = huber_threshold(log_y - at_points(theta)[0])
        theta = _minimise(at_points, log_y, delta, theta[None])
        # L-BFGS converges slowly along valleys
        theta = bootstrap.refit(at_points, log_y, delta, theta, np.ones((1, len(log_y))))[0]
        counts = bootstrap.resample_counts(data.group, seed, resamples or bootstrap.RESAMPLES)
        return Fit(law, data, theta, bootstrap.refit(at_points, log_y, delta, theta, counts))


def huber_threshold(residuals: Logs) -> float:
    """Return the residual at which the Huber loss turns from quadratic to linear."""
    deviation = float(np.median(np.abs(residuals - np.median(residuals))) / stats.norm.ppf(0.75))
    return max(PUBLISHED_DELTA, 1.345 * deviation)


def _starts(law: Law, data: Observations, seed: int) -> Float[np.ndarray, "S P"]:
    """Return the best points of a seeded grid, with their scales solved for where the law is linear in them."""
    random = np.random.default_rng(seed)
    low, high = (np.array([getattr(p, end) for p in law.parameters]) for end in ("low", "high"))
    drawn = random.uniform(low, high, (GRID_STARTS, len(low)))
    at_points = law.at(data.x)
    solved = np.stack([_with_best_scales(law, at_points, data.y, theta) for theta in drawn])
    errors = np.abs(np.log(data.y)[None] - at_points(solved)[0]).sum(axis=1)
    return solved[np.argsort(np.where(np.isfinite(errors), errors, np.inf))[:REFINED_STARTS]]


def _with_best_scales(law: Law, at_points: PointwiseLaw, y: Any, theta: Any) -> Any:
    """Return theta with its scales replaced by the non-negative least-squares solution.

    Scales are the parameters whose logarithm multiplies a term. A law that is not linear in them keeps its theta.
    """
    scales = [i for i, p in enumerate(law.parameters) if p.logarithm]
    value, slopes = at_points(theta)
    terms = np.exp(value)[:, None] * slopes[:, scales] / np.exp(theta[scales])[None]  # d y / d scale
    if not np.isfinite(terms).all() or not np.allclose(terms @ np.exp(theta[scales]), np.exp(value), rtol=1e-6):
        return theta
    solution, _ = optimize.nnls(terms / y[:, None], np.ones(len(y)))
    solved = theta.copy()
    solved[scales] = np.log(np.maximum(solution, 1e-6 * np.exp(theta[scales])))
    return solved


def _minimise(at_points: PointwiseLaw, log_y: Any, delta: float, starts: Any) -> Float[np.ndarray, " P"]:
    """Return the best optimum that L-BFGS reaches from the starts."""

    @typing.no_type_check  # called in the inner loop
    def loss(theta: Any) -> Any:
        value, slopes = at_points(theta)
        residuals = log_y - value
        return huber(residuals, delta), -slopes.T @ np.clip(residuals, -delta, delta) / delta

    options = {"maxiter": MAX_LBFGS_ITERATIONS}
    optima = [optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options) for start in starts]
    return min(optima, key=lambda optimum: optimum.fun if np.isfinite(optimum.fun) else np.inf).x


@typing.no_type_check  # called in the inner loop
def huber(residuals: Any, delta: float) -> float:
    """Return the sum of Huber losses divided by the threshold, so that it does not scale with the threshold."""
    size = np.abs(residuals)
    return float(np.sum(np.where(size <= delta, size**2 / (2 * delta), size - delta / 2)))
