"""The re-randomisation test: how extreme the difference is among assignments that could have been drawn.

It is exact for the hypothesis that no unit's outcome depends on its arm, whatever the distribution of times, and is the
headline where the effective number of clusters is under 40. The statistic is studentised (Chung and Romano 2013), so
that it is also right asymptotically for equal means.

Dims: U units of assignment.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxtempl.errors import UserError

CHUNK = 50_000_000  # cells of the largest matrix of assignments, about 400 MB


class RandomizationTest(NamedTuple):
    """A two-sided p-value.

    Attributes:
        p: Share of the draws, the observed assignment included, with a statistic as extreme as the observed one.
        statistic: Observed difference over its standard error.
        draws: Number of drawn assignments.
    """

    p: float
    statistic: float
    draws: int


def rerandomize(
    totals: Float[np.ndarray, " U"],
    weights: Float[np.ndarray, " U"],
    treated: Bool[np.ndarray, " U"],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> RandomizationTest:
    """Return the test of the difference of means, with the arms permuted among units.

    Args:
        totals: Sum of the times of each unit: a pair if pairs were assigned, an advocate if advocates were.
        weights: Number of times of each unit, at least one.
        treated: Whether the unit is in the second arm.
        draws: Number of assignments to draw.
        seed: Seed of the draws.

    Raises:
        UserError: An arm has fewer than two units, or the times have no variance.
    """
    count = int(treated.sum())
    if min(count, len(treated) - count) < 2:
        raise UserError(f"{count} of {len(treated)} units are treated; a test needs two or more in each arm")
    totals = totals - weights * (totals.sum() / weights.sum())  # a shift changes no statistic, and keeps digits
    sums = np.column_stack([totals, weights, totals**2, totals * weights, weights**2])
    observed = float(_statistics(treated[None].astype(float), sums)[0])
    if not np.isfinite(observed):
        raise UserError("all units have the same mean in each arm, so there is no variance; check the times")
    random, extreme, left = np.random.default_rng(seed), 0, draws
    while left:
        rows = min(left, max(1, CHUNK // len(treated)))
        drawn = random.permuted(np.broadcast_to(treated, (rows, len(treated))), axis=1).astype(float)
        extreme += int((np.abs(_statistics(drawn, sums)) >= abs(observed) * (1 - 1e-12)).sum())
        left -= rows
    return RandomizationTest((1 + extreme) / (1 + draws), observed, draws)


def _statistics(treated: Float[np.ndarray, "R U"], sums: Float[np.ndarray, "U 5"]) -> Float[np.ndarray, " R"]:
    """Return the studentised difference of each assignment; units without variance give infinities."""
    second = treated @ sums
    (mean, variance), (mean_0, variance_0) = _moments(second), _moments(sums.sum(0) - second)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (mean - mean_0) / np.sqrt(variance + variance_0)


def _moments(sums: Float[np.ndarray, "R 5"]) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Return the mean of an arm and the variance of that mean, from its five sums over units."""
    total, weight, squares, products, weights = sums.T
    mean = total / weight
    return mean, np.maximum(squares - 2 * mean * products + mean**2 * weights, 0) / weight**2
