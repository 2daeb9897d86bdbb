"""Whether a law is one for some points: what it leaves over must be noise, and it must foretell what it was not shown.

Dims: N points, K variables, P parameters, Q columns.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxtempl.scaling.laws.fitting import Data, Fit, Value, fit
from jaxtempl.scaling.laws.forms import Law

SPARE = 3  # points that a law needs beyond its parameters
LEFT_OVER = 0.01  # p value below which what is left over is no noise
LEAST_R2 = 0.5
STEEPEST = 3.0  # exponent: beyond, all but the first points lie on a level line, and it tells nothing of the others
HELD_OUT = 0.25  # of the points, those of the greatest values


@dataclasses.dataclass(frozen=True)
class Judged:
    """A law, and whether it is one here.

    Attributes:
        fit: of all points.
        refused: why it is none; empty where it is.
        foretold: mean relative error on the last quarter of the points, when fitted to the others; NaN where too few.
    """

    fit: Fit
    refused: str
    foretold: float


def judge(law: Law, data: Data, order: int = -1, seed: int = 0) -> Judged | None:
    """Fits and judges a law; None where there are too few points for it.

    Args:
        law: to fit.
        data: points.
        order: index of the variable whose greatest values are held out.
        seed: of the fit.
    """
    if len(data.y) < len(law.parameters) + SPARE:
        return None
    found = fit(law, data, seed)
    return Judged(found, refusal(found), foretold(law, data, order, seed))


def refusal(found: Fit) -> str:
    """Why a law is none for its points; empty where it is."""
    p = left_over(found)
    if p < LEFT_OVER:
        return f"what it leaves over follows a curve (p = {p:.2g}): the points were made by another law"
    if found.r2 < LEAST_R2:
        return f"it explains {max(found.r2, 0):.0%} of the variance: there is too little trend for it"
    for parameter, value in zip(found.law.parameters, found.theta.tolist(), strict=True):
        if not parameter.logarithm and abs(value) > STEEPEST:
            return f"its exponent {parameter.name} is {value:.3g}: what it is of hardly changes after the first points"
    return ""


def left_over(found: Fit) -> float:
    """P value of an F test: do powers of the logarithms of the variables explain more than the law's own slopes do?

    The test of lack of fit of a non-linear regression, linear around its optimum (Seber and Wild, 1989, section 2.8).
    1 where there are too few points to tell.
    """
    _, slopes = found.law.log(found.theta, found.data.x)
    own = _independent(slopes)
    wider = _independent(np.concatenate([own, _powers(found.data.x)], axis=1))
    more, spare = wider.shape[1] - own.shape[1], len(found.residuals) - wider.shape[1]
    if more < 1 or spare < SPARE:
        return 1.0
    before, after = (_unexplained(found.residuals, columns) for columns in (own, wider))
    return float(stats.f.sf((before - after) / more / max(after / spare, 1e-300), more, spare))


def _powers(x: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N Q"]:
    """1, u, u squared and u cubed of each variable's standardised logarithm, and products of two."""
    logs = np.log(x)
    u = (logs - logs.mean(axis=0)) / np.maximum(logs.std(axis=0), 1e-12)
    pairs = [u[:, i] * u[:, j] for i in range(u.shape[1]) for j in range(i)]
    degrees = (1, 2, 3) if len(x) > 12 else (1, 2)
    return np.stack([np.ones(len(u)), *(u[:, i] ** d for i in range(u.shape[1]) for d in degrees), *pairs], axis=1)


def _independent(columns: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N Q"]:
    """An orthonormal basis of what the columns span."""
    scaled = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    basis, size, _ = np.linalg.svd(scaled, full_matrices=False)
    return basis[:, size > 1e-6 * size[0]]


def _unexplained(residuals: Float[np.ndarray, " N"], basis: Float[np.ndarray, "N Q"]) -> float:
    return float(np.sum((residuals - basis @ (basis.T @ residuals)) ** 2))


def foretold(law: Law, data: Data, order: int, seed: int) -> float:
    """Mean relative error on the points of the greatest values of a variable, when fitted to the others.

    NaN where fewer are left than the law needs, even when the greatest value alone is held out.
    """
    own, needed = data.x[:, order], len(law.parameters) + 1
    seen = own < np.quantile(own, 1 - HELD_OUT)
    if seen.sum() < needed:
        seen = own < own.max()
    if seen.sum() < needed:
        return float("nan")
    known = fit(law, Data(data.x[seen], data.y[seen], data.group[seen]), seed, resamples=2)
    said = np.exp(law.log(known.theta, data.x[~seen])[0])
    return float(np.mean(np.abs(said / data.y[~seen] - 1)))


def chosen(candidates: list[Judged]) -> Judged:
    """Of laws that say the same thing in other forms, the one that foretells best."""
    return min(candidates, key=lambda found: (bool(found.refused), np.nan_to_num(found.foretold, nan=np.inf)))


def said(value: Value, form: str = ".3g") -> str:
    """A number with its interval, in words."""
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"
