"""Draw the times at which requests are due: an open loop, which slow answers do not slow down."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float64

Arrivals = Literal["poisson", "constant", "bursty"]
Times = Float64[np.ndarray, " N"]

GAPS = 1024  # gaps drawn at a time


def draw_times(kind: Arrivals, rate: float, seconds: float, burstiness: float, rng: np.random.Generator) -> Times:
    """Draw the times at which requests are due.

    Args:
        kind: Distribution of the gaps: 1/rate each (constant), exponential (poisson), or Gamma (bursty).
        rate: Mean requests per second.
        seconds: Duration in which requests are sent.
        burstiness: Variance of the gaps of `bursty`, in squares of their mean; 1 makes them exponential.
        rng: Generator that the gaps are drawn with.

    Returns:
        Seconds from the start, ascending, all below `seconds`.
    """
    if kind == "constant":
        due = np.arange(np.ceil(rate * seconds)) / rate
    elif kind == "poisson":
        due = _renewal(lambda: rng.exponential(1 / rate, GAPS), seconds)
    else:
        due = _renewal(lambda: rng.gamma(1 / burstiness, burstiness / rate, GAPS), seconds)
    return due[due < seconds]


def _renewal(draw_gaps: Callable[[], Times], seconds: float) -> Times:
    """Return cumulative sums of gaps until they exceed `seconds`."""
    parts = [np.zeros(1)]
    while parts[-1][-1] < seconds:
        parts.append(parts[-1][-1] + np.cumsum(draw_gaps()))
    return np.concatenate(parts[1:])
