"""The paired comparison of two classifiers: their difference in top-k accuracy on the same contexts.

Pairing removes what both share, so it resolves differences that two separate intervals do not.

Dims: N contexts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxtempl import files
from jaxtempl.errors import UserError
from jaxtempl.evaluation.metrics import MISS, TOPS, Bootstrap
from jaxtempl.specs.interval import Interval

Ranks = Int[np.ndarray, " N"]  # of each context's label, as `metrics.ranks` returns them


class PairedDifference(NamedTuple):
    """A difference with its 95 % confidence interval and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p: float

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "PairedDifference":
        """Return the difference of a JSON object `{"value", "low", "high", "p"}`."""
        return cls(*Interval.from_json(entry), p=float(entry["p"]))

    def __str__(self) -> str:
        """Return `+value [low, high], p = ...`, in percentage points."""
        points = Interval(*(100 * x for x in self[:3]))
        return f"{points:+.1f}, p {'= ' if self.p >= 0.01 else '< '}{max(self.p, 0.01):.2f}"


def compare(ours: Ranks, theirs: Ranks, bootstrap: Bootstrap) -> dict[str, PairedDifference]:
    """Return the accuracy of `ours` minus that of `theirs` as `top1`, `top3` and `top5`.

    Resamples are whole cases. The p-value inverts the percentile interval: it is below .05 where the interval excludes
    0 (Davison and Hinkley 1997, section 4.4, with one added to each count).
    """
    return {f"top{k}": _mean(np.subtract(ours < k, theirs < k, dtype=np.float64), bootstrap) for k in TOPS}


def _mean(values: Float[np.ndarray, " N"], bootstrap: Bootstrap) -> PairedDifference:
    columns = np.stack([values, np.ones_like(values)], axis=1)
    _, resampled = bootstrap.resample(columns, lambda sums: sums[..., 0] / sums[..., 1])
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum()) + 1
    return PairedDifference(*bootstrap.mean(values), p=min(2 * float(tail) / (len(resampled) + 1), 1.0))


def compare_predictions(ours: Path, theirs: Path, seed: int = 0) -> dict[str, PairedDifference]:
    """Compare two files `predictions.jsonl` of the same contexts.

    Raises:
        UserError: The files are of different contexts.
    """
    lines, others = list(files.read_lines(ours)), list(files.read_lines(theirs))
    keys, other_keys = ([(line["case_id"], line["message"]) for line in read] for read in (lines, others))
    if keys != other_keys:
        raise UserError(
            f"{ours} and {theirs} are of different contexts; evaluate both runs on one split of one dataset"
        )
    cases = np.unique([case_id for case_id, _ in keys], return_inverse=True)[1]
    return compare(_ranks(lines), _ranks(others), Bootstrap(cases, seed))


def _ranks(lines: Sequence[Mapping[str, Any]]) -> Ranks:
    return np.array([line["top"].index(line["label"]) if line["label"] in line["top"] else MISS for line in lines])
