"""Linear regression of one loss on another (the paper's Figure 3c), and F tests for a curve common to all sizes.

Dims: N points, S sizes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats

from jaxtempl.scaling.laws.bootstrap import LEVEL
from jaxtempl.scaling.laws.fitting import Observations, fit
from jaxtempl.scaling.laws.forms import Law
from jaxtempl.specs.interval import Interval

MIN_POINTS = 3  # points of a line


class Regression(NamedTuple):
    """A least-squares line y = intercept + slope x.

    Attributes:
        slope: Slope with its interval from Student's t.
        intercept: Intercept with its interval from Student's t.
        r2: Share of the variance that the line explains.
        points: Number of points.
    """

    slope: Interval
    intercept: Interval
    r2: float
    points: int

    def predict(self, x: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """Return the line's values."""
        return self.intercept.value + self.slope.value * x


def fit_line(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> Regression | None:
    """Fit a line; return None for fewer than three points, or if all have the same x."""
    if len(x) < MIN_POINTS or np.ptp(x) == 0:
        return None
    result: Any = stats.linregress(x, y)
    quantile = stats.t.ppf((1 + LEVEL) / 2, len(x) - 2)
    slope, intercept = (
        Interval(float(value), float(value - quantile * error), float(value + quantile * error))
        for value, error in ((result.slope, result.stderr), (result.intercept, result.intercept_stderr))
    )
    return Regression(slope, intercept, float(result.rvalue**2), len(x))


class CommonCurveTest(NamedTuple):
    """An F test of one curve for all sizes against one curve for each size.

    Attributes:
        f: F statistic.
        p: Probability of so large a statistic if one curve serves all sizes.
        pooled: Residual sum of squares with one curve.
        separate: Residual sum of squares with a curve for each size.
    """

    f: float
    p: float
    pooled: float
    separate: float


def compare_lines(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], size: Int[np.ndarray, " N"]
) -> CommonCurveTest | None:
    """Test one line against a line for each size (analysis of covariance); return None for too few points."""
    return _compare(y, size, 2, lambda chosen: _line_residual_squares(x[chosen], y[chosen]))


def _line_residual_squares(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float:
    columns = np.stack([np.ones_like(x), x], axis=1)
    return float(np.sum((y - columns @ np.linalg.lstsq(columns, y)[0]) ** 2))


def compare_laws(law: Law, data: Observations, size: Int[np.ndarray, " N"], seed: int = 0) -> CommonCurveTest | None:
    """Test one law for all sizes against the same law with separate parameters for each size."""

    def residual_squares(chosen: Shaped[np.ndarray, " N"]) -> float:
        part = Observations(data.x[chosen], data.y[chosen], data.group[chosen])
        return float(np.sum(fit(law, part, seed, resamples=2).residuals ** 2))

    return _compare(data.y, size, len(law.parameters), residual_squares)


def _compare(
    y: Float[np.ndarray, " N"],
    size: Int[np.ndarray, " N"],
    parameters: int,
    residual_squares: Callable[[Shaped[np.ndarray, " N"]], float],
) -> CommonCurveTest | None:
    sizes: Sequence[int] = np.unique(size).tolist()
    freedom, extra = len(y) - parameters * len(sizes), parameters * (len(sizes) - 1)
    if len(sizes) < 2 or freedom < MIN_POINTS or min(np.sum(size == one) for one in sizes) < parameters:
        return None
    pooled = residual_squares(np.ones(len(y), bool))
    separate = sum(residual_squares(size == one) for one in sizes)
    f = max(pooled - separate, 0.0) / extra / max(separate / freedom, 1e-300)
    return CommonCurveTest(f, float(stats.f.sf(f, extra, freedom)), pooled, separate)
