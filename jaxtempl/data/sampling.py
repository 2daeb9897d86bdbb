"""The one seeded sampler of cases and of labelled contexts."""

import numpy as np
from jaxtyping import Integer


def nested_subset(total: int, count: int | None, seed: int) -> Integer[np.ndarray, " count"]:
    """Return the first `count` indices of one seeded permutation, so that smaller subsets lie inside larger ones.

    Args:
        total: number of items.
        count: size of the subset; None or more than `total` gives all items, in random order.
        seed: seed of the permutation.
    """
    return np.random.default_rng(seed).permutation(total)[:count]
