"""Goodness of fit of a law: its residuals must look like noise, and held-out points must be predicted.

Dims: N points, K variables, P parameters, Q columns.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxtempl.scaling.laws.fitting import Fit, Observations, fit
from jaxtempl.scaling.laws.forms import Law

SPARE_POINTS = 3  # points that a law needs beyond its parameters
SIGNIFICANCE = 0.01  # p value below which the residuals are not noise
MIN_R2 = 0.5
MAX_EXPONENT = 3.0  # a steeper curve is flat beyond its first points
HELD_OUT = 0.25  # share of the points with the largest values


@dataclasses.dataclass(frozen=True)
class LawAssessment:
    """A fitted law with the verdict on it.

    Attributes:
        fit: Fit to all points.
        rejection: Reason why the law does not hold; empty if it holds.
        heldout_error: Mean relative error on the last quarter of the points when fitted to the others; NaN if there are
            too few points.
    """

    fit: Fit
    rejection: str
    heldout_error: float


def assess(law: Law, data: Observations, held_out_variable: int = -1, seed: int = 0) -> LawAssessment | None:
    """Fit a law and assess it; return None if there are too few points.

    Args:
        law: Law to fit.
        data: Points.
        held_out_variable: Index of the variable whose largest values are held out.
        seed: Seed of the fit.
    """
    if len(data.y) < len(law.parameters) + SPARE_POINTS:
        return None
    fitted = fit(law, data, seed)
    return LawAssessment(fitted, rejection_reason(fitted), heldout_error(law, data, held_out_variable, seed))


def rejection_reason(fitted: Fit) -> str:
    """Return why a law does not hold for its points; empty if it holds."""
    p = lack_of_fit(fitted)
    if p < SIGNIFICANCE:
        return f"the residuals follow a curve (p = {p:.2g}), so another law generated the points"
    if fitted.r2 < MIN_R2:
        return f"it explains {max(fitted.r2, 0):.0%} of the variance: there is too little trend for it"
    for parameter, value in zip(fitted.law.parameters, fitted.theta.tolist(), strict=True):
        if not parameter.logarithm and abs(value) > MAX_EXPONENT:
            return f"its exponent {parameter.name} is {value:.3g}: the curve is flat after the first points"
    return ""


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


def heldout_error(law: Law, data: Observations, variable: int, seed: int) -> float:
    """Return the mean relative error on the points with the largest values of a variable, fitted to the others.

    It is NaN if fewer points remain than the law needs, even when only the largest value is held out.
    """
    values, needed = data.x[:, variable], len(law.parameters) + 1
    seen = values < np.quantile(values, 1 - HELD_OUT)
    if seen.sum() < needed:
        seen = values < values.max()
    if seen.sum() < needed:
        return float("nan")
    fitted = fit(law, Observations(data.x[seen], data.y[seen], data.group[seen]), seed, resamples=2)
    predicted = np.exp(law.log(fitted.theta, data.x[~seen])[0])
    return float(np.mean(np.abs(predicted / data.y[~seen] - 1)))


def best_predicting(candidates: Sequence[LawAssessment]) -> LawAssessment:
    """Return the law that holds, if any does, with the smallest error on held-out points."""
    return min(candidates, key=lambda law: (bool(law.rejection), np.nan_to_num(law.heldout_error, nan=np.inf)))
