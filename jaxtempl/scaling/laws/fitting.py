"""Fits of a law: Huber loss of log residuals, minimised within bounds and in scaled units from many starts.

The loss follows Hoffmann et al., 2022 (arXiv 2203.15556, section 3.3), first with their threshold of 1e-3. Where the
points scatter more, the threshold is 1.345 robust standard deviations (Huber, 1981): a threshold far inside the noise
discards information. Each variable is divided by its geometric mean, so that the fit does not depend on units. Starts
lie on a seeded grid of the parameters in which the law is not linear; the others are solved for at each start (variable
projection). All starts descend together, and L-BFGS-B refines the best.

Dims: R resamples, N points, M other points, K variables, P parameters, S starts.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, stats
from threadpoolctl import threadpool_limits

from jaxtempl.scaling.laws import bootstrap
from jaxtempl.scaling.laws.bootstrap import Bounds, percentile_interval
from jaxtempl.scaling.laws.forms import Law, PointwiseLaw, Scales, scales_of
from jaxtempl.specs.interval import Interval

PUBLISHED_DELTA = 1e-3
GRID_STARTS = 160
REFINED_STARTS = 8  # best descended starts that L-BFGS-B refines
DESCENT_ITERATIONS = 40
MAX_LBFGS_ITERATIONS = 500

Logs = Float[np.ndarray, " N"]


class Observations(NamedTuple):
    """The points that a law is fitted to.

    Attributes:
        x: Variables, positive.
        y: Measured quantity, positive.
        group: Group of each point, such as the run that it belongs to; residuals of a group may be correlated.
    """

    x: Float[np.ndarray, "N K"]
    y: Float[np.ndarray, " N"]
    group: Int[np.ndarray, " N"]

    def select(self, chosen: Any) -> "Observations":
        """Return the points of a mask or of indices."""
        return Observations(self.x[chosen], self.y[chosen], self.group[chosen])


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: Law.
        data: Points of the fit.
        theta: Parameters in the fit's representation, in the units of the points.
        resampled: Parameters of each resample, in the same representation.
        delta: Threshold of the Huber loss.
    """

    law: Law
    data: Observations
    theta: Float[np.ndarray, " P"]
    resampled: Float[np.ndarray, "R P"]
    delta: float = PUBLISHED_DELTA

    @property
    def parameters(self) -> dict[str, Interval]:
        """The parameters of the formula, with intervals."""
        return self._parameters(self.theta, self.resampled)

    @property
    def scaled_parameters(self) -> dict[str, Interval]:
        """The parameters in scaled units (see `forms.scales_of`): scales are those at the points' geometric mean."""
        back = scales_of(self.law, self.data.x, self.data.y).inverse()
        return self._parameters(*(self.law.convert(theta, back) for theta in (self.theta, self.resampled)))

    def _parameters(self, theta: Float[np.ndarray, " P"], resampled: Float[np.ndarray, "R P"]) -> dict[str, Interval]:
        found: dict[str, Interval] = {}
        for i, p in enumerate(self.law.parameters):
            interval = self._interval(theta[i], resampled[:, i], p.logarithm)
            found[p.name] = interval if p.logarithm else interval._replace(low=max(interval.low, p.bounds[0]))
        return found

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

    def narrowing(self, x: Float[np.ndarray, " K"], candidates: Float[np.ndarray, "M K"]) -> Float[np.ndarray, " M"]:
        """Return the share by which one more measurement at each candidate narrows the standard error at x.

        It is linearised at the optimum (Chaloner and Verdinelli, 1995, section 2: c-optimal design).
        """
        slopes, at_x, each = (self.law.log(self.theta, points)[1] for points in (self.data.x, x[None], candidates))
        inverse = np.linalg.pinv(slopes, rcond=1e-8)
        direction = inverse.T @ at_x[0]
        added = each @ inverse
        gain = (added @ direction) ** 2 / (1 + np.sum(added**2, axis=1))
        return 1 - np.sqrt(np.maximum(1 - gain / max(direction @ direction, 1e-300), 0.0))

    def _interval(self, value: Any, resampled: Any, logarithm: bool) -> Interval:
        widening = bootstrap.widening(len(self.data.y), len(np.unique(self.data.group)), len(self.theta))
        return percentile_interval(value, resampled, widening, logarithm)

    @property
    def residuals(self) -> Logs:
        """Logarithms of measurements over predictions."""
        return np.log(self.data.y) - self.law.log(self.theta, self.data.x)[0]

    @property
    def objective(self) -> float:
        """Sum of Huber losses, as in published fits."""
        return self.delta * huber(self.residuals, self.delta)

    @property
    def r2(self) -> float:
        """Share of the variance of log y that the law explains."""
        log_y = np.log(self.data.y)
        return float(1 - np.sum(self.residuals**2) / max(np.sum((log_y - log_y.mean()) ** 2), 1e-300))


def fit(
    law: Law,
    data: Observations,
    seed: int = 0,
    resamples: int | None = None,
    delta: float | None = None,
    fixed: Mapping[str, float] | None = None,
    start: Float[np.ndarray, " P"] | None = None,
) -> Fit:
    """Fit a law to points.

    Args:
        law: Law to fit.
        data: Points, more than the law has parameters.
        seed: Seed of starts and resamples.
        resamples: Number of bootstrap resamples (default: `bootstrap.RESAMPLES`).
        delta: Threshold of the Huber loss (default: see the module).
        fixed: Values of parameters that are not fitted, in the units of the points.
        start: Parameters from which alone the fit starts, instead of the grid.
    """
    scales = scales_of(law, data.x, data.y) if not fixed else Scales(np.ones(data.x.shape[1]), 1.0)
    problem = _Problem(law, data, scales, fixed or {})
    with threadpool_limits(1):  # threads only wait for one another on matrices this small
        starts = problem.starts(seed) if start is None else law.convert(start[None], scales.inverse())
        theta = problem.minimise(starts, delta or PUBLISHED_DELTA)
        threshold = delta or huber_threshold(problem.residuals(theta))
        theta = problem.minimise(theta[None], threshold)
        resampled = problem.resample(theta, threshold, seed, bootstrap.RESAMPLES if resamples is None else resamples)
    return Fit(law, data, law.convert(theta, scales), law.convert(resampled, scales), threshold)


def huber_threshold(residuals: Logs) -> float:
    """Return the residual at which the Huber loss turns from quadratic to linear."""
    deviation = float(np.median(np.abs(residuals - np.median(residuals))) / stats.norm.ppf(0.75))
    return max(PUBLISHED_DELTA, 1.345 * deviation)


class _Problem:
    """The minimisation of one law's Huber loss in scaled units.

    Args:
        law: Law to fit.
        data: Points.
        scales: Units.
        fixed: Values of parameters that are not fitted; the units are then those of the points.
    """

    def __init__(self, law: Law, data: Observations, scales: Scales, fixed: Mapping[str, float]) -> None:
        self._law, self._group = law, data.group
        self._at_points: PointwiseLaw = law.at(data.x / scales.x)
        self._log_y = np.log(data.y / scales.y)
        held = {
            p.name: float(np.log(fixed[p.name])) if p.logarithm else fixed[p.name]
            for p in law.parameters
            if p.name in fixed
        }
        low, high = zip(*((held[p.name],) * 2 if p.name in held else p.bounds for p in law.parameters), strict=True)
        self.bounds = Bounds(np.array(low, float), np.array(high, float))

    def residuals(self, theta: Float[np.ndarray, " P"]) -> Logs:
        return self._log_y - self._at_points(theta)[0]

    def starts(self, seed: int) -> Float[np.ndarray, "S P"]:
        """Return a seeded grid, with the parameters in which the law is linear solved for."""
        low, high = (np.array([getattr(p, end) for p in self._law.parameters]) for end in ("low", "high"))
        drawn = np.random.default_rng(seed).uniform(low, high, (GRID_STARTS, len(low)))
        return np.stack([self._solve_linear(theta) for theta in self.bounds.clip(drawn)])

    def _solve_linear(self, theta: Any) -> Any:
        """Return theta with the parameters in which the law is linear replaced by their least-squares solution."""
        logarithm = np.array([p.logarithm for p in self._law.parameters])
        linear = np.array([p.linear for p in self._law.parameters]) & (self.bounds.low < self.bounds.high)
        value, slopes = self._at_points(theta)
        relative = np.exp(value - self._log_y)[:, None] * slopes / np.where(logarithm, np.exp(theta), 1.0)
        if not linear.any() or not np.isfinite(relative).all():
            return theta
        natural = np.where(logarithm, np.exp(theta), theta)
        rest = 1 - np.exp(value - self._log_y) + relative[:, linear] @ natural[linear]  # less what the others predict
        natural[linear], _ = optimize.nnls(relative[:, linear], rest)
        solved = np.where(logarithm, np.log(np.maximum(natural, 1e-6)), natural)
        return self.bounds.clip(np.where(linear, solved, theta))

    def minimise(self, starts: Float[np.ndarray, "S P"], delta: float) -> Float[np.ndarray, " P"]:
        """Return the best optimum that is reached from the starts."""
        descended, losses = self._descend(starts, max(delta, 0.01), DESCENT_ITERATIONS)
        best = descended[np.argsort(losses)[:REFINED_STARTS]]
        refined = np.stack([self._refine(start, delta) for start in best])
        # L-BFGS-B converges slowly along valleys
        optima, losses = self._descend(refined, delta, bootstrap.MAX_ITERATIONS)
        return optima[np.argmin(losses)]

    def _descend(self, starts: Any, delta: float, iterations: int) -> tuple[Any, Any]:
        log_y = np.tile(self._log_y, (len(starts), 1))
        return bootstrap.descend(self._at_points, log_y, delta, starts, self.bounds, iterations)

    def _refine(self, start: Any, delta: float) -> Any:
        @typing.no_type_check  # called in the inner loop
        def loss(theta: Any) -> Any:
            value, slopes = self._at_points(theta)
            residuals = self._log_y - value
            return huber(residuals, delta), -slopes.T @ np.clip(residuals, -delta, delta) / delta

        options = {"maxiter": MAX_LBFGS_ITERATIONS}
        limits = np.stack(self.bounds, axis=1).tolist()
        return optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=limits, options=options).x

    def resample(self, theta: Any, delta: float, seed: int, resamples: int) -> Float[np.ndarray, "R P"]:
        """Return the parameters refitted to each resample."""
        value, slopes = self._at_points(theta)
        free = self.bounds.free(theta)
        log_y = bootstrap.resample(value, self._log_y - value, slopes[:, free], self._group, seed, resamples)
        starts = np.tile(theta, (len(log_y), 1))
        return bootstrap.descend(self._at_points, log_y, delta, starts, self.bounds, bootstrap.MAX_ITERATIONS)[0]


@typing.no_type_check  # called in the inner loop
def huber(residuals: Any, delta: float) -> float:
    """Return the sum of Huber losses divided by the threshold, so that it does not scale with the threshold."""
    size = np.abs(residuals)
    return float(np.sum(np.where(size <= delta, size**2 / (2 * delta), size - delta / 2)))
