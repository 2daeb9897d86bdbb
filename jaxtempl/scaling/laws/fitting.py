"""Fits a law: Huber losses of log residuals, L-BFGS from many starts, and a bootstrap over groups of points.

The loss is that of Hoffmann et al., 2022 (arXiv 2203.15556, section 3.3), with its threshold of 1e-3 first; where the
points scatter more than that, the threshold is 1.345 times their robust deviation (Huber, 1981), for a threshold far
inside the noise throws away what the points tell. Starts lie on a seeded grid of the parameters that are not scales;
the scales are solved for in each (variable projection), as the prediction is linear in them.

Resamples are refitted together from the optimum, by iterated reweighted least squares with Levenberg's damping, so that
hundreds take as long as one.

Dims: R resamples, N points, K variables, P parameters, G groups.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import optimize, stats
from threadpoolctl import threadpool_limits

from jaxtempl.scaling.laws.forms import Law

PUBLISHED_DELTA = 1e-3
STARTS = 60
ITERATIONS = 500  # of L-BFGS
KEPT = 8  # of these, the best, are gone on with
RESAMPLES = 400
LEVEL = 0.95
LARGEST = 700.0  # logarithm that a float can be the exponential of: ends of intervals that nothing bounds
ROUNDS = 200  # of the refits, at the most: along the valleys of some laws they are slow

Logs = Float[np.ndarray, " N"]


class Value(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


class Data(NamedTuple):
    """What a law is fitted to.

    Attributes:
        x: points, above 0.
        y: what was measured there, above 0.
        group: of each point: those of one group are resampled together.
    """

    x: Float[np.ndarray, "N K"]
    y: Float[np.ndarray, " N"]
    group: Int[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law that was fitted.

    Attributes:
        law: it.
        data: the points.
        theta: its parameters, as the fit works with them.
        resampled: the same of each resample.
    """

    law: Law
    data: Data
    theta: Float[np.ndarray, " P"]
    resampled: Float[np.ndarray, "R P"]

    @property
    def parameters(self) -> dict[str, Value]:
        """The parameters of the formula, with intervals."""
        return {
            p.name: self._value(self.theta[i], self.resampled[:, i], p.logarithm)
            for i, p in enumerate(self.law.parameters)
        }

    def predict(self, x: Float[np.ndarray, "M K"]) -> list[Value]:
        """What the law says at other points."""
        whole, each = (self.law.log(theta, x)[0] for theta in (self.theta, self.resampled))
        return [self._value(whole[i], each[:, i], logarithm=True) for i in range(len(x))]

    def ratio(self, x: Float[np.ndarray, " K"], then: Float[np.ndarray, " K"]) -> Value:
        """What the law says at one point over what it says at another, surer than either."""
        (before, after), each = (
            self.law.log(theta, np.stack([x, then]))[0].T for theta in (self.theta, self.resampled)
        )
        return self._value(after - before, each[1] - each[0], logarithm=True)

    def leverage(self, x: Float[np.ndarray, " K"]) -> Logs:
        """By how much the prediction moves with each of the points (logarithms of both), linear around the optimum."""
        own, there = (self.law.log(self.theta, at)[1] for at in (self.data.x, x[None]))
        return there[0] @ np.linalg.pinv(own, rcond=1e-8)

    def _value(self, whole: Any, each: Shaped[np.ndarray, " R"], logarithm: bool) -> Value:
        """Percentile interval, widened for the parameters that were fitted (Hesterberg, 2015, section 5.3)."""
        low, high = np.quantile(each, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        ends = (whole, whole - self.widening * (whole - low), whole + self.widening * (high - whole))
        return Value(*(float(np.exp(min(end, LARGEST)) if logarithm else end) for end in ends))

    @property
    def widening(self) -> float:
        """Of an interval: Student's t instead of the normal, and the degrees of freedom that the parameters took."""
        groups = len(np.unique(self.data.group))
        spare = max(groups - len(self.theta), 1)
        return float(stats.t.ppf((1 + LEVEL) / 2, spare) / stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(groups / spare))

    @property
    def residuals(self) -> Logs:
        """Logarithms of what was measured over what the law says."""
        return np.log(self.data.y) - self.law.log(self.theta, self.data.x)[0]

    @property
    def r2(self) -> float:
        """Share of the variance of log y that the law explains."""
        own = np.log(self.data.y)
        return float(1 - np.sum(self.residuals**2) / max(np.sum((own - own.mean()) ** 2), 1e-300))


def fit(law: Law, data: Data, seed: int = 0, resamples: int = RESAMPLES) -> Fit:
    """Fits a law to points.

    Args:
        law: to fit.
        data: more points than the law has parameters.
        seed: of starts and resamples.
        resamples: of the bootstrap.
    """
    log_y = np.log(data.y)
    with threadpool_limits(1):  # the matrices are so small that threads wait for one another
        return _fit(law, data, log_y, seed, resamples)


def _fit(law: Law, data: Data, log_y: Logs, seed: int, resamples: int) -> Fit:
    theta = _best(law, data.x, log_y, PUBLISHED_DELTA, _starts(law, data, seed))
    delta = _delta(log_y - law.log(theta, data.x)[0])
    theta = _best(law, data.x, log_y, delta, theta[None])
    theta = _refit(law, data.x, log_y, delta, theta, np.ones((1, len(log_y))))[0]  # along valleys L-BFGS is slow
    times = _times(data.group, seed, resamples)
    return Fit(law, data, theta, _refit(law, data.x, log_y, delta, theta, times))


def _delta(residuals: Logs) -> float:
    """Where the loss turns from square to straight."""
    deviation = float(np.median(np.abs(residuals - np.median(residuals))) / stats.norm.ppf(0.75))
    return max(PUBLISHED_DELTA, 1.345 * deviation)


def _starts(law: Law, data: Data, seed: int) -> Float[np.ndarray, "S P"]:
    """The most promising of a seeded grid, their scales solved for where the law is linear in them."""
    random = np.random.default_rng(seed)
    low, high = (np.array([getattr(p, end) for p in law.parameters]) for end in ("low", "high"))
    drawn = random.uniform(low, high, (STARTS, len(low)))
    solved = np.stack([_projected(law, data, theta) for theta in drawn])
    errors = np.abs(np.log(data.y)[None] - law.log(solved, data.x)[0]).sum(axis=1)
    return solved[np.argsort(np.where(np.isfinite(errors), errors, np.inf))[:KEPT]]


def _projected(law: Law, data: Data, theta: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """The same with the best scales: those whose logarithms multiply a term, by non-negative least squares."""
    scales = [i for i, p in enumerate(law.parameters) if p.logarithm]
    value, slopes = law.log(theta, data.x)
    terms = np.exp(value)[:, None] * slopes[:, scales] / np.exp(theta[scales])[None]  # d y / d scale
    if not np.isfinite(terms).all() or not np.allclose(terms @ np.exp(theta[scales]), np.exp(value), rtol=1e-6):
        return theta  # it is not linear in them
    found, _ = optimize.nnls(terms / data.y[:, None], np.ones(len(data.y)))
    solved = theta.copy()
    solved[scales] = np.log(np.maximum(found, 1e-6 * np.exp(theta[scales])))
    return solved


def _best(law: Law, x: Any, log_y: Logs, delta: float, starts: Float[np.ndarray, "S P"]) -> Float[np.ndarray, " P"]:
    """The least loss that L-BFGS finds."""

    def loss(theta: Float[np.ndarray, " P"]) -> tuple[float, Float[np.ndarray, " P"]]:
        value, slopes = law.log(theta, x)
        return huber(log_y - value, delta), -slopes.T @ np.clip(log_y - value, -delta, delta) / delta

    ends = [
        optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}) for start in starts
    ]
    return min(ends, key=lambda end: end.fun if np.isfinite(end.fun) else np.inf).x


def huber(residuals: Logs, delta: float) -> float:
    """Sum of Huber losses over the threshold, so that its size says nothing of the threshold's."""
    size = np.abs(residuals)
    return float(np.sum(np.where(size <= delta, size**2 / (2 * delta), size - delta / 2)))


def _times(group: Int[np.ndarray, " N"], seed: int, resamples: int) -> Float[np.ndarray, "R N"]:
    """How often each point is in each resample of whole groups."""
    unique, own = np.unique(group, return_inverse=True)
    random = np.random.default_rng(seed + 1)
    return random.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), resamples)[:, own].astype(float)


def _refit(
    law: Law, x: Any, log_y: Logs, delta: float, theta: Float[np.ndarray, " P"], times: Float[np.ndarray, "R N"]
) -> Float[np.ndarray, "R P"]:
    """The optimum of each resample, from that of all."""
    found = np.tile(theta, (len(times), 1))
    damping = np.full(len(times), 1e-3)
    loss, slopes, weights, residuals = _weighted(law, x, log_y, delta, found, times)
    for _ in range(ROUNDS):
        step = _step(slopes, weights, residuals, damping)
        tried = _weighted(law, x, log_y, delta, found + step, times)
        better = tried[0] <= loss
        settled = (loss - tried[0] < 1e-9 * loss) & (better | (damping > 1e6))
        found = np.where(better[:, None], found + step, found)
        loss = np.where(better, tried[0], loss)
        slopes, weights, residuals = (
            np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(tried[1:], (slopes, weights, residuals), strict=True)
        )
        if settled.all():
            break
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
    return found


def _weighted(law: Law, x: Any, log_y: Logs, delta: float, theta: Any, times: Any) -> tuple[Any, Any, Any, Any]:
    """Loss of each resample, slopes of its points, their weights in least squares, and residuals."""
    value, slopes = law.log(theta, x)
    residuals = log_y - value
    size = np.abs(residuals)
    each = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
    loss = np.sum(times * each, axis=1)
    weights = times * np.minimum(1, delta / np.maximum(size, 1e-300))
    return np.where(np.isfinite(loss), loss, np.inf), slopes, weights, residuals


def _step(slopes: Any, weights: Any, residuals: Any, damping: Any) -> Float[np.ndarray, "R P"]:
    """Of Levenberg and Marquardt."""
    normal = np.einsum("rnp,rn,rnq->rpq", slopes, weights, slopes)
    right = np.einsum("rnp,rn,rn->rp", slopes, weights, residuals)
    diagonal = np.einsum("rpp->rp", normal)
    damped = normal + np.eye(normal.shape[1])[None] * (damping[:, None] * (diagonal + 1e-12 * diagonal.max()))[:, None]
    step = np.linalg.solve(damped, right[..., None])[..., 0]
    return np.clip(np.nan_to_num(step), -1, 1)  # of exponents and logarithms of scales: far is where it goes astray
