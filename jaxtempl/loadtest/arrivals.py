"""When requests are due, whatever the server does: an open loop, which a slow answer does not slow down."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float64

Arrivals = Literal["poisson", "constant", "bursty"]
Times = Float64[np.ndarray, " N"]

DRAWN = 1024  # gaps at a time


def draw_times(kind: Arrivals, rate: float, seconds: float, burstiness: float, rng: np.random.Generator) -> Times:
    """The times at which requests are due.

    Args:
        kind: gaps of 1/rate (constant), exponential ones (poisson), or Gamma ones (bursty).
        rate: requests a second, on average.
        seconds: how long requests are sent.
        burstiness: of bursty, the variance of the gaps in squares of their mean; 1 makes them exponential.
        rng: what gaps are drawn with.

    Returns:
        Seconds from the start, ascending, all of them below `seconds`.
    """
    if kind == "constant":
        due = np.arange(np.ceil(rate * seconds)) / rate
    elif kind == "poisson":
        due = _renewal(lambda: rng.exponential(1 / rate, DRAWN), seconds)
    else:
        due = _renewal(lambda: rng.gamma(1 / burstiness, burstiness / rate, DRAWN), seconds)
    return due[due < seconds]


def _renewal(gaps: Callable[[], Times], seconds: float) -> Times:
    """Sums of gaps until they pass `seconds`."""
    parts = [np.zeros(1)]
    while parts[-1][-1] < seconds:
        parts.append(parts[-1][-1] + np.cumsum(gaps()))
    return np.concatenate(parts[1:])
