"""The number of labels from which a run passes a baseline, from runs with different numbers of labels.

The paired difference in accuracy is fitted by least squares as a line in the logarithm of the number of labels (Banko
and Brill 2001, "Scaling to Very Very Large Corpora", found accuracy close to such a line). The interval is that of the
bootstrap over test cases. It holds neither the noise of training nor the error of the form.

Dims: N contexts, P runs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxtempl.evaluation import paired
from jaxtempl.evaluation.metrics import Bootstrap
from jaxtempl.evaluation.paired import Ranks
from jaxtempl.specs.interval import Interval

REACH = 8  # times the largest number of labels, up to which the line is extrapolated


def fit(labels: Sequence[int], pairs: Sequence[tuple[Ranks, Ranks]], k: int, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return the points of the curve, its limit, and the number of labels from which the run passes the baseline.

    Args:
        labels: number of labels of each run, the evaluated run first; at least two differ.
        pairs: ranks of each run and of the baseline with the same labels.
        k: top-k accuracy is compared.
        bootstrap: resamples of the contexts' cases.
    """
    differences = np.stack([np.subtract(ours < k, theirs < k, dtype=np.float64) for ours, theirs in pairs], axis=1)
    points = [paired.compare(ours, theirs, bootstrap)[f"top{k}"] for ours, theirs in pairs]
    return {
        "points": [{"labels": count, "difference": point} for count, point in sorted(zip(labels, points, strict=True))],
        "limit": REACH * max(labels),
        "passes": passes(labels, differences, bootstrap),
    }


def passes(labels: Sequence[int], differences: Float[np.ndarray, "N P"], bootstrap: Bootstrap) -> Interval:
    """Return the least number of labels, from those of the first run on, at which the line is not negative.

    NaN stands for a number beyond the limit, which includes a line that never gets there.
    """
    x, limit = np.log(labels), REACH * max(labels)
    spread = x - x.mean()

    def crossing(sums: Any) -> Any:
        gaps = sums[..., :-1] / sums[..., -1:]
        level, slope = gaps.mean(axis=-1), gaps @ spread / (spread @ spread)
        rises = slope > 0
        log = np.where(rises, x.mean() - level / np.where(rises, slope, 1), np.inf)
        is_ahead = level + slope * (x[0] - x.mean()) >= 0
        return np.exp(np.clip(np.where(is_ahead, x[0], log), x[0], np.log(limit)))

    columns = np.concatenate([differences, np.ones((len(differences), 1))], axis=1)
    found = bootstrap.interval(columns, crossing)
    return Interval(*(np.nan if count > limit * (1 - 1e-9) else count for count in found))
