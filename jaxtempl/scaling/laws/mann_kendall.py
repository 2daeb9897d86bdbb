"""Mann-Kendall trend test of a curve: does more adaptation still help (issue 6; CHECKLIST 4.2, G5)?

Isik et al., 2024 (arXiv 2402.04177): if a corpus is not aligned with the task, cross-entropy keeps improving with more
of it, and the task's metric does not.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

SIGNIFICANCE = 0.05
MIN_POINTS = 4  # no order of three points is significant

TrendDirection = Literal["rises", "falls", "neither"]


class Trend(NamedTuple):
    """The trend of one curve.

    Attributes:
        direction: Direction of the trend, if it is significant.
        tau: Kendall's tau, from -1 (always falls) to 1 (always rises).
        p: Probability of so much order by chance.
    """

    direction: TrendDirection
    tau: float
    p: float


def trend(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> Trend:
    """Return the trend of y as x grows."""
    if len(x) < MIN_POINTS:
        return Trend("neither", float("nan"), 1.0)
    result: Any = stats.kendalltau(x, y)
    tau, p = float(result.statistic), float(result.pvalue)
    if not p < SIGNIFICANCE:
        return Trend("neither", tau, p)
    return Trend("rises" if tau > 0 else "falls", tau, p)


def is_misaligned(
    tokens: Float[np.ndarray, " N"], loss: Float[np.ndarray, " N"], accuracy: Float[np.ndarray, " N"]
) -> bool:
    """Return whether the loss improves with adaptation and accuracy does not."""
    return trend(tokens, loss).direction == "falls" and trend(tokens, accuracy).direction != "rises"
