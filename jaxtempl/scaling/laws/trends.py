"""Whether more adaptation helps at all: Mann and Kendall's test, curve by curve (issue 6; CHECKLIST 4.2, G5).

Isik et al., 2024 (arXiv 2402.04177): where a corpus is not aligned with the task, cross-entropy goes on improving with
more of it and the metric that matters does not.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

SURE = 0.05
LEAST = 4  # points of a curve: of three, no order is unlikely enough

Direction = Literal["rises", "falls", "neither"]


class Trend(NamedTuple):
    """Of one curve.

    Attributes:
        direction: what it does, where that is sure.
        tau: Kendall's, from -1 (always falls) to 1.
        p: how likely so much order is by chance.
    """

    direction: Direction
    tau: float
    p: float


def trend(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> Trend:
    """What y does as x grows."""
    if len(x) < LEAST:
        return Trend("neither", float("nan"), 1.0)
    found: Any = stats.kendalltau(x, y)
    tau, p = float(found.statistic), float(found.pvalue)
    if not p < SURE:
        return Trend("neither", tau, p)
    return Trend("rises" if tau > 0 else "falls", tau, p)


def misaligned(
    tokens: Float[np.ndarray, " N"], loss: Float[np.ndarray, " N"], accuracy: Float[np.ndarray, " N"]
) -> bool:
    """Whether loss improves with adaptation and accuracy does not."""
    return trend(tokens, loss).direction == "falls" and trend(tokens, accuracy).direction != "rises"
