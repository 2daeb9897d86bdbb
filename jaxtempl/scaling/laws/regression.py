"""Straight lines: loss against loss (the paper's Figure 3c), and whether one serves all sizes.

Dims: N points, S sizes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats

from jaxtempl.scaling.laws.fitting import LEVEL, Data, Value, fit
from jaxtempl.scaling.laws.forms import Law

LEAST = 3  # points of a line


class Line(NamedTuple):
    """y = intercept + slope x, by least squares.

    Attributes:
        slope: with its interval, of Student's t.
        intercept: the same.
        r2: share of the variance explained.
        points: that it is of.
    """

    slope: Value
    intercept: Value
    r2: float
    points: int

    def at(self, x: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """What it says."""
        return self.intercept.value + self.slope.value * x


def line(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> Line | None:
    """The line through some points; None where they are fewer than three, or all at one x."""
    if len(x) < LEAST or np.ptp(x) == 0:
        return None
    found: Any = stats.linregress(x, y)
    wide = stats.t.ppf((1 + LEVEL) / 2, len(x) - 2)
    slope, intercept = (
        Value(float(value), float(value - wide * error), float(value + wide * error))
        for value, error in ((found.slope, found.stderr), (found.intercept, found.intercept_stderr))
    )
    return Line(slope, intercept, float(found.rvalue**2), len(x))


class Test(NamedTuple):
    """Whether one curve does for all sizes.

    Attributes:
        f: of the test.
        p: how likely so large a one is where one curve does.
        pooled: unexplained variance with one curve, apart with one a size.
        apart: the same with one a size.
    """

    __test__ = False  # not pytest's

    f: float
    p: float
    pooled: float
    apart: float


def one_line(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], size: Int[np.ndarray, " N"]) -> Test | None:
    """F test of one line against a line a size (analysis of covariance); None where there are too few points."""
    return _test(y, size, 2, lambda own: _unexplained_by_line(x[own], y[own]))


def _unexplained_by_line(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float:
    columns = np.stack([np.ones_like(x), x], axis=1)
    return float(np.sum((y - columns @ np.linalg.lstsq(columns, y)[0]) ** 2))


def one_curve(law: Law, data: Data, size: Int[np.ndarray, " N"], seed: int = 0) -> Test | None:
    """F test of one law for all sizes against the same law with parameters of its own for each."""

    def unexplained(own: Shaped[np.ndarray, " N"]) -> float:
        part = Data(data.x[own], data.y[own], data.group[own])
        return float(np.sum(fit(law, part, seed, resamples=2).residuals ** 2))

    return _test(data.y, size, len(law.parameters), unexplained)


def _test(
    y: Float[np.ndarray, " N"],
    size: Int[np.ndarray, " N"],
    parameters: int,
    unexplained: Callable[[Shaped[np.ndarray, " N"]], float],
) -> Test | None:
    sizes: Sequence[int] = np.unique(size).tolist()
    spare, more = len(y) - parameters * len(sizes), parameters * (len(sizes) - 1)
    if len(sizes) < 2 or spare < LEAST or min(np.sum(size == one) for one in sizes) < parameters:
        return None
    pooled = unexplained(np.ones(len(y), bool))
    apart = sum(unexplained(size == one) for one in sizes)
    f = max(pooled - apart, 0.0) / more / max(apart / spare, 1e-300)
    return Test(f, float(stats.f.sf(f, more, spare)), pooled, apart)
