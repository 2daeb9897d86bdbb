"""Compare a converted network with its source on real contexts, one at a time and in batches.

Dims: B rows, L length, N positions compared, S slots (or vocabulary).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32
from tqdm import tqdm

from jaxtempl.text.window import bucket_of, pad_rows

NetworkFunction = Callable[[Int32[np.ndarray, "B L"], Int32[np.ndarray, " B"]], Float32[np.ndarray, "B *L S"]]
TokenIds = Sequence[int]

BATCH_ROWS = 8  # contexts of a batch
# Minimum agreement outside ties; issue 4. An engine of a quantized graph is compared with that graph, by the bounds of
# its own dtype.
MIN_TOP1 = {"fp32": 1.0, "fp16": 0.999, "tensorrt-int8": 0.999, "tensorrt-fp8": 0.999}
# If no logit moves by more than d, no top-1 changes whose margin exceeds 2 d. A wrong network therefore ties at nearly
# all positions. A correct one had 1.1 % ties in fp16 (nano, star), and 8 % as a language model, where the largest of
# 10^9 differences is far above a typical one. Eight bits amplify rounding: one quantized graph had 7 % in int8 and 16 %
# in fp8 between fp32 and fp16.
MAX_TIES = {"fp32": 0.01, "fp16": 0.1, "tensorrt-int8": 0.2, "tensorrt-fp8": 0.4}
MIN_TOP1_WITH_TIES = {"fp32": 0.999, "fp16": 0.99, "tensorrt-int8": 0.99, "tensorrt-fp8": 0.99}

CHANCE = 0.05  # a network with half an allowed share may exceed that share with at most this probability
# By the Poisson limit of the binomial, this holds from 8 / share contexts on, where more than 8 contexts exceed it:
# P(X > 8) = .021 for a mean of 4. With 7 / share the probability reaches .051 before the 8th is allowed.
DECISIVE = 8


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far two networks agree.

    Shares are of the positions compared: one per context, or every token for a language model.

    Attributes:
        compared: number of positions; each context counts single and batched.
        largest_logit: largest magnitude of a logit of the reference.
        largest_difference: largest difference between two logits.
        top1: share with the same best slot.
        top5: share with the same five best, in any order.
        ties: share whose best two logits are less than twice the largest difference apart in the reference.
        top1_outside_ties: share of the others with the same best slot.
        not_finite: number of logits that are not finite.
    """

    compared: int
    largest_logit: float
    largest_difference: float
    top1: float
    top5: float
    ties: float
    top1_outside_ties: float
    not_finite: int


class Comparison:
    """Accumulates the agreement of two networks over batches."""

    def __init__(self) -> None:
        self._largest = self._difference = 0.0
        self._not_finite = 0
        self._margins: list[Float32[np.ndarray, " N"]] = []
        self._same1: list[Bool[np.ndarray, " N"]] = []
        self._same5: list[Bool[np.ndarray, " N"]] = []

    def add(self, reference: Float32[np.ndarray, "N S"], candidate: Float32[np.ndarray, "N S"]) -> None:
        """Add the logits of some positions."""
        bad = ~np.isfinite(candidate)
        self._not_finite += int(bad.sum())
        candidate = np.where(bad, np.float32(-np.inf), candidate)
        apart = np.abs(np.where(bad, np.float32(0), candidate - reference))
        self._difference = max(self._difference, float(apart.max(initial=0)))
        self._largest = max(self._largest, float(np.abs(reference).max(initial=0)))
        best = np.partition(reference, -2, axis=1)[:, -2:] if reference.shape[1] > 1 else np.zeros((len(reference), 2))
        self._margins.append(np.asarray(best[:, 1] - best[:, 0], np.float32))
        self._same1.append(reference.argmax(axis=1) == candidate.argmax(axis=1))
        self._same5.append((_top5(reference) == _top5(candidate)).all(axis=1))

    def agreement(self) -> Agreement:
        """Return the agreement over all positions added."""
        margins, same1, same5 = (np.concatenate(parts) for parts in (self._margins, self._same1, self._same5))
        tied = margins < 2 * self._difference
        return Agreement(
            compared=len(same1),
            largest_logit=self._largest,
            largest_difference=self._difference,
            top1=float(same1.mean()),
            top5=float(same5.mean()),
            ties=float(tied.mean()),
            top1_outside_ties=float(same1[~tied].mean()) if not tied.all() else 0.0,
            not_finite=self._not_finite,
        )


def compare(
    reference: NetworkFunction,
    candidate: NetworkFunction,
    rows: Sequence[TokenIds],
    buckets: Sequence[int],
    progress: bool = False,
) -> Agreement:
    """Run both networks on every row: the reference in batches, the candidate in batches and one row at a time.

    Padding slots, which the reference does not have, are ignored.

    Args:
        reference: network that the candidate was converted from.
        candidate: network to verify.
        rows: token ids, none longer than the last bucket.
        buckets: lengths that batches are padded to.
        progress: show a progress bar.
    """
    found = Comparison()
    with tqdm(total=len(rows), desc="verifying", unit=" contexts", disable=not progress) as bar:
        for batch in batch_by_length(rows, buckets):
            ids, lengths = pad_rows(batch.rows, batch.bucket)
            wanted = real_positions(reference(ids, lengths), lengths)
            together = real_positions(candidate(ids, lengths), lengths)
            single = ((ids[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths))
            alone = np.concatenate([real_positions(candidate(*row), row[1]) for row in single])
            for got in (together, alone):
                found.add(wanted, got[:, : wanted.shape[1]])
            bar.update(len(batch.rows))
    return found.agreement()


def find_faults(figures: Agreement, dtype: str) -> list[str]:
    """Return the reasons why the candidate does not match its source; an empty list if it does."""
    found: list[str] = []
    if figures.not_finite:
        found.append(f"{figures.not_finite:,} logits are not finite")
    if figures.top1_outside_ties < MIN_TOP1[dtype]:
        found.append(f"top-1 agrees in {figures.top1_outside_ties:.2%} outside ties, not {MIN_TOP1[dtype]:.1%}")
    if figures.top1 < MIN_TOP1_WITH_TIES[dtype]:
        found.append(f"top-1 agrees in {figures.top1:.2%} in all, not {MIN_TOP1_WITH_TIES[dtype]:.1%}")
    if figures.ties > MAX_TIES[dtype]:
        found.append(
            f"{figures.ties:.2%} are ties, above {MAX_TIES[dtype]:.0%}: logits differ by up to "
            f"{figures.largest_difference:.3g} (the largest is {figures.largest_logit:.3g})"
        )
    return found


def contexts_needed(figures: Agreement, dtype: str) -> int:
    """Return how many contexts it takes to tell whether the faults are chance; 0 if they are not.

    A fault is chance if a network with half of the allowed share has as many such contexts with a probability of more
    than `CHANCE`, by the binomial distribution (Clopper and Pearson, 1934).
    """
    if figures.not_finite or figures.top1_outside_ties < MIN_TOP1[dtype]:
        return 0
    contexts = figures.compared // 2  # each context counts single and batched
    shares = ((figures.ties, MAX_TIES[dtype]), (1 - figures.top1, 1 - MIN_TOP1_WITH_TIES[dtype]))
    exceeded = [(round(share * contexts), allowed) for share, allowed in shares if share > allowed]
    if not all(_may_be_chance(count, contexts, allowed) for count, allowed in exceeded):
        return 0
    return max((math.ceil(round(DECISIVE / allowed, 6)) for _, allowed in exceeded), default=0)


def _may_be_chance(count: int, contexts: int, allowed: float) -> bool:
    """Return whether `count` or more contexts have a probability above `CHANCE` at half the allowed share."""
    p = allowed / 2
    fewer = (math.comb(contexts, i) * p**i * (1 - p) ** (contexts - i) for i in range(min(count, DECISIVE)))
    return count <= DECISIVE and 1 - sum(fewer) > CHANCE


def describe_small_sample(figures: Agreement, dtype: str) -> str:
    """Return a clause that states that the sample is too small and how many contexts to pass, or an empty string."""
    needed = contexts_needed(figures, dtype)
    size = figures.compared // 2
    small = f"a sample of {size:,} is too small to tell this from chance: pass --verify_contexts={needed}"
    return small if needed else ""


def summary(figures: Agreement) -> str:
    """Return the agreement as one line."""
    return (
        f"largest difference {figures.largest_difference:.2g} of logits up to {figures.largest_logit:.3g}, "
        f"top-1 the same in {figures.top1:.2%}, top-5 in {figures.top5:.2%}, ties {figures.ties:.2%}, "
        f"{figures.not_finite} not finite, {figures.compared:,} compared"
    )


@dataclasses.dataclass(frozen=True)
class PaddedBatch:
    """Rows that are padded to one length.

    Attributes:
        rows: token ids of each row.
        bucket: padded length.
    """

    rows: Sequence[TokenIds]
    bucket: int


def batch_by_length(rows: Sequence[TokenIds], buckets: Sequence[int], size: int = BATCH_ROWS) -> list[PaddedBatch]:
    """Return the rows grouped by bucket, in batches of `size`."""
    found: list[PaddedBatch] = []
    for bucket in buckets:
        own = [row for row in rows if bucket_of(len(row), buckets) == bucket]
        found += [PaddedBatch(own[i : i + size], bucket) for i in range(0, len(own), size)]
    return found


def real_positions(
    logits: Float32[np.ndarray, "B *L S"], lengths: Int32[np.ndarray, " B"]
) -> Float32[np.ndarray, "N S"]:
    """Return the logits to compare: one per row, or those of every token that is not padding."""
    if logits.ndim == 2:
        return logits
    return np.concatenate([row[:length] for row, length in zip(logits, lengths, strict=True)])


def _top5(logits: Float32[np.ndarray, "N S"]) -> Int32[np.ndarray, "N K"]:
    k = min(5, logits.shape[1])
    return np.sort(np.argpartition(-logits, k - 1, axis=1)[:, :k], axis=1).astype(np.int32)


def to_dict(figures: Agreement) -> Mapping[str, Any]:
    """Return the agreement as it is stored in `bundle.json`."""
    return dataclasses.asdict(figures)
