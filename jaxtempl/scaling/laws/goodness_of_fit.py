"""The acceptance of a law: misfit and held-out error against noise decide (docs/laws.md states the rule).

Dims: N points, K variables, P parameters, Q columns.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from jaxtempl.scaling.laws.bootstrap import MIN_GROUPS
from jaxtempl.scaling.laws.fitting import Fit, Observations, fit
from jaxtempl.scaling.laws.forms import Law

SPARE_POINTS = 3  # points that a law needs beyond its parameters
MIN_DISTINCT = 3  # values of each variable
UNIQUE = "unique tokens"
TOLERANCE = 0.05  # relative error that is accepted whatever the noise
NOISE_FACTOR = 2.0  # errors within this multiple of the noise are accepted
MAX_SPAN = 100.0  # of an identified parameter's interval, upper over lower bound
SIGNIFICANCE = 0.01  # p value below which a remark says that the residuals follow a curve
MIN_R2 = 0.5
MAX_EXPONENT = 3.0  # a steeper curve is flat beyond its first points
HELD_OUT = 0.25  # share of the points with the largest values
MAX_FOLDS = 6  # of the leave-one-out error of a variable with many values


class HeldOut(NamedTuple):
    """The mean relative errors on held-out points; NaN where the others are too few to fit.

    Attributes:
        error: Error of the law, fitted to the others.
        nearest: Error of the nearest measured value.
    """

    error: float
    nearest: float


@dataclasses.dataclass(frozen=True)
class LawAssessment:
    """A fitted law with the verdict on it.

    Attributes:
        fit: Fit to all points.
        rejection: Reason why the law does not hold; empty if it holds.
        misfit: Mean relative error on the fitted points.
        noise: Standard deviation of log measurements at equal variables; NaN if none are repeated.
        heldout: Errors on the largest values of each variable, by variable.
        unidentified: Parameters that the points do not determine.
        remarks: What a reader must know besides.
    """

    fit: Fit
    rejection: str
    misfit: float
    noise: float
    heldout: dict[str, HeldOut]
    unidentified: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def heldout_error(self) -> float:
        """The largest error on held-out points; NaN if none could be held out."""
        return _largest([one.error for one in self.heldout.values()])

    @property
    def extrapolates(self) -> bool:
        """True if the law predicts outside the measured range: it holds and its parameters are identified."""
        return not self.rejection and not self.unidentified

    def covers(self, x: Float[np.ndarray, " K"]) -> bool:
        """Return whether the law predicts at a point: it holds, and the point is measured or may be extrapolated to."""
        measured = bool(((x >= self.fit.data.x.min(axis=0)) & (x <= self.fit.data.x.max(axis=0))).all())
        return self.extrapolates or (measured and not self.rejection)


def shortage(law: Law, data: Observations) -> str:
    """Return why points are too few for a law; empty if they suffice."""
    needed = len(law.parameters) + SPARE_POINTS
    if len(data.y) < needed:
        return f"{len(data.y)} points are too few: {law.name} needs {needed}"
    for i, name in enumerate(law.variables):
        values = _distinct(law, data, i)
        if len(values) < MIN_DISTINCT:
            listed = ", ".join(f"{value:g}" for value in values)
            return f"{name} has {len(values)} distinct values ({listed}): {law.name} needs {MIN_DISTINCT}"
    return ""


def _distinct(law: Law, data: Observations, variable: int) -> Float[np.ndarray, " M"]:
    """Return the distinct values of a variable; of unique tokens, those of the epochs over them."""
    if law.variables[variable] == UNIQUE:
        return np.unique(data.x[:, law.variables.index("tokens")] / data.x[:, variable])
    return np.unique(data.x[:, variable])


def assess(
    law: Law,
    data: Observations,
    seed: int = 0,
    held_out: Bool[np.ndarray, " N"] | None = None,
    delta: float | None = None,
    fixed: Mapping[str, float] | None = None,
) -> LawAssessment | None:
    """Fit a law and assess it; return None if there are too few points or values of a variable.

    Args:
        law: Law to fit.
        data: Points.
        seed: Seed of the fit.
        held_out: Points to predict from the others (default: the largest values of each variable).
        delta: Threshold of the Huber loss of the fit; fits that predict held-out points choose their own.
        fixed: Values of parameters that are not fitted.
    """
    if shortage(law, data):
        return None
    fitted = fit(law, data, seed, delta=delta, fixed=fixed)
    if held_out is None:
        heldout = {
            name: heldout_errors(law, data, _largest_values(law, data, i), seed, fixed=fixed)
            for i, name in enumerate(law.variables)
        }
    else:
        heldout = {"the chosen points": heldout_errors(law, data, held_out, seed, fixed=fixed)}
    misfit, noise = float(np.mean(np.abs(np.expm1(-fitted.residuals)))), repeated_scatter(data)
    rejection = rejection_reason(fitted, misfit, noise, heldout)
    unidentified = tuple(_unidentified(fitted))
    return LawAssessment(
        fitted,
        rejection,
        misfit,
        noise,
        heldout,
        unidentified,
        tuple(_remarks(fitted, unidentified, heldout)),
    )


def rejection_reason(fitted: Fit, misfit: float, noise: float, heldout: Mapping[str, HeldOut]) -> str:
    """Return why a law does not hold for its points; empty if it holds."""
    allowed = max(TOLERANCE, NOISE_FACTOR * np.nan_to_num(noise))
    if fitted.r2 < MIN_R2:
        return f"it explains {max(fitted.r2, 0):.0%} of the variance: there is too little trend for it"
    if misfit > allowed:
        return f"its misfit is {misfit:.1%}, more than {allowed:.1%}"
    for parameter, value in zip(fitted.law.parameters, fitted.theta.tolist(), strict=True):
        if parameter.is_exponent and value > MAX_EXPONENT:
            return f"its exponent {parameter.name} is {value:.3g}: the curve is flat after the first points"
    for name, one in heldout.items():
        if one.error > allowed:
            return f"it predicts held-out values of {name} {one.error:.1%} off, more than {allowed:.1%}"
        if one.error > max(one.nearest, NOISE_FACTOR * misfit):
            return (
                f"it predicts held-out values of {name} {one.error:.1%} off, where the nearest measured value is "
                f"{one.nearest:.1%} off"
            )
    return ""


def _unidentified(fitted: Fit) -> list[str]:
    """Return the exponents and scales whose interval includes 0 or spans too much, in scaled units."""
    found = fitted.scaled_parameters
    judged = {p.name: found[p.name] for p in fitted.law.parameters if p.logarithm or p.is_exponent}
    return [name for name, one in judged.items() if one.low <= 0 or one.high > MAX_SPAN * one.low]


def _remarks(fitted: Fit, unidentified: Sequence[str], heldout: Mapping[str, HeldOut]) -> Iterator[str]:
    if unidentified:
        yield f"the points do not identify {', '.join(unidentified)}: it predicts inside the measured range only"
    for i, name in enumerate(fitted.law.variables):
        if len(_distinct(fitted.law, fitted.data, i)) == MIN_DISTINCT:
            yield f"{name} has only {MIN_DISTINCT} distinct values"
    missing = [name for name, one in heldout.items() if np.isnan(one.error)]
    if missing:
        yield f"no values of {', '.join(missing)} could be held out"
    groups = len(np.unique(fitted.data.group))
    if groups < MIN_GROUPS:
        yield f"{groups} runs: the intervals leave out the scatter between runs"
    p = lack_of_fit(fitted)
    if p < SIGNIFICANCE:
        yield f"the residuals follow a curve (p = {p:.2g})"


def repeated_scatter(data: Observations) -> float:
    """Return the standard deviation of log measurements at equal variables; NaN if none are repeated."""
    _, index, counts = np.unique(data.x, axis=0, return_inverse=True, return_counts=True)
    freedom = len(data.y) - len(counts)
    if not freedom:
        return float("nan")
    index, logs = index.ravel(), np.log(data.y)
    means = np.bincount(index, logs) / counts
    return float(np.sqrt(np.sum((logs - means[index]) ** 2) / freedom))


def lack_of_fit(fitted: Fit) -> float:
    """Return the p value of an F test for lack of fit.

    Do powers of the log variables explain residual variance that the law's own slopes do not? The test is that of
    non-linear regression, linearised at the optimum (Seber and Wild, 1989, section 2.8). It returns 1 if there are too
    few points.
    """
    _, slopes = fitted.law.log(fitted.theta, fitted.data.x)
    narrow = _orthonormal_basis(slopes)
    wide = _orthonormal_basis(np.concatenate([narrow, _powers(fitted.data.x)], axis=1))
    extra, freedom = wide.shape[1] - narrow.shape[1], len(fitted.residuals) - wide.shape[1]
    if extra < 1 or freedom < SPARE_POINTS:
        return 1.0
    before, after = (_residual_squares(fitted.residuals, basis) for basis in (narrow, wide))
    return float(stats.f.sf((before - after) / extra / max(after / freedom, 1e-300), extra, freedom))


def _powers(x: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N Q"]:
    """Return 1, powers up to the cube of each variable's standardised logarithm, and products of two."""
    logs = np.log(x)
    u = (logs - logs.mean(axis=0)) / np.maximum(logs.std(axis=0), 1e-12)
    pairs = [u[:, i] * u[:, j] for i in range(u.shape[1]) for j in range(i)]
    degrees = (1, 2, 3) if len(x) > 12 else (1, 2)
    return np.stack([np.ones(len(u)), *(u[:, i] ** d for i in range(u.shape[1]) for d in degrees), *pairs], axis=1)


def _orthonormal_basis(columns: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N Q"]:
    """Return an orthonormal basis of the column space."""
    scaled = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    basis, size, _ = np.linalg.svd(scaled, full_matrices=False)
    return basis[:, size > 1e-6 * size[0]]


def _residual_squares(residuals: Float[np.ndarray, " N"], basis: Float[np.ndarray, "N Q"]) -> float:
    return float(np.sum((residuals - basis @ (basis.T @ residuals)) ** 2))


def _largest_values(law: Law, data: Observations, variable: int) -> Bool[np.ndarray, " N"]:
    """Return the points with the largest values of a variable, so that the others suffice for the law if they can."""
    values = data.x[:, variable]
    few = [value for value in np.unique(values) if np.mean(values >= value) <= HELD_OUT]
    chosen = values >= (min(few) if few else values.max())
    return chosen if _suffice(law, data.select(~chosen)) else values == values.max()


def _suffice(law: Law, data: Observations) -> bool:
    enough = all(len(_distinct(law, data, i)) >= MIN_DISTINCT for i in range(len(law.variables)))
    return enough and len(data.y) > len(law.parameters)


def heldout_error(law: Law, data: Observations, variable: int, seed: int) -> float:
    """Return the mean relative error on the points with the largest values of a variable, fitted to the others."""
    return heldout_errors(law, data, _largest_values(law, data, variable), seed).error


def heldout_errors(
    law: Law, data: Observations, held_out: Bool[np.ndarray, " N"], seed: int, **options: Any
) -> HeldOut:
    """Return the errors on held-out points, fitted to the others with options; NaN if the others are too few."""
    seen, unseen = data.select(~held_out), data.select(held_out)
    if not _suffice(law, seen) or not len(unseen.y):
        return HeldOut(float("nan"), float("nan"))
    fitted = fit(law, seen, seed, resamples=0, **options)
    predicted = np.exp(law.log(fitted.theta, unseen.x)[0])
    return HeldOut(_mean_error(predicted, unseen.y), _mean_error(_nearest(seen, unseen.x), unseen.y))


def leave_out_error(fitted: Fit, variable: int, seed: int = 0) -> float:
    """Return the mean relative error of a variable's values, each predicted by the points with the others.

    Many values form contiguous blocks. It is NaN if the others are too few.
    """
    values = fitted.data.x[:, variable]
    folds = np.array_split(np.unique(values), min(len(np.unique(values)), MAX_FOLDS))
    errors = [
        heldout_errors(fitted.law, fitted.data, np.isin(values, fold), seed, start=fitted.theta).error for fold in folds
    ]
    return float("nan") if np.isnan(errors).all() else float(np.nanmean(errors))


def _nearest(seen: Observations, x: Float[np.ndarray, "M K"]) -> Float[np.ndarray, " M"]:
    """Return the measurement that is nearest in the log variables, each over its range."""
    logs, others = np.log(seen.x), np.log(x)
    span = np.maximum(np.ptp(logs, axis=0), 1e-12)
    distance = np.abs((others[:, None] - logs[None]) / span).sum(axis=2)
    return seen.y[np.argmin(distance, axis=1)]


def _mean_error(predicted: Float[np.ndarray, " M"], measured: Float[np.ndarray, " M"]) -> float:
    return float(np.mean(np.abs(predicted / measured - 1)))


def _largest(errors: Sequence[float]) -> float:
    return float("nan") if np.isnan(errors).all() else float(np.nanmax(errors))


def best_predicting(candidates: Sequence[LawAssessment]) -> LawAssessment:
    """Return the law that holds, if any does, with the smallest error on held-out points."""
    return min(candidates, key=lambda law: (bool(law.rejection), np.nan_to_num(law.heldout_error, nan=np.inf)))
