"""Batches as a pure function of (seed, step): packed rows, labelled contexts and weighted mixtures.

A batch is a list of microbatches, each a dict of arrays in one of a few fixed shapes. The gradient of a batch does not
depend on how its rows are cut into microbatches. An epoch is a seeded permutation, so any host can build any part of
any step, and resuming means reading from a later step. Each process builds only its local rows.

Dims: B rows, L length.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Integer, Shaped

from jaxtempl.data.examples import LabelledContext, LabelledContexts
from jaxtempl.errors import UserError
from jaxtempl.text.window import bucket_of, pad_rows

WORKERS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)

Microbatch = Mapping[str, Shaped[np.ndarray, "..."]]
Batch = list[Microbatch]
RowTransform = Callable[[Microbatch, np.random.Generator], Microbatch]
LocalRows = Callable[[int], Integer[np.ndarray, " local"]]  # rows of a microbatch -> those that this process builds


def microbatch_rows(batch: int, accumulate: int) -> int:
    """Return the rows of a microbatch when a batch is cut into `accumulate` equal ones.

    Raises:
        UserError: `accumulate` does not divide `batch`.
    """
    if batch % accumulate:
        raise UserError(
            f"--gradient_accumulation_steps={accumulate} does not divide --batch_size={batch}; use a divisor of {batch}"
        )
    return batch // accumulate


def row_batches(
    sources: Sequence[tuple[Any, float | None]],
    batch: int,
    accumulate: int,
    seed: int,
    local_rows: LocalRows = np.arange,
    transform: RowTransform | None = None,
) -> grain.MapDataset:
    """Return batches of packed rows by step, drawn from datasets mixed by weight.

    Args:
        sources: (rows, weight) pairs; a weight of None is the source's number of rows, so an epoch sees each once.
        batch: rows of an update.
        accumulate: number of equal microbatches of an update.
        seed: seed of the order of the rows.
        local_rows: rows of a microbatch that this process reads (default: all).
        transform: changes a row, with a generator seeded by the row's place in the stream; each pass differs.

    Raises:
        UserError: `accumulate` does not divide `batch`, or a source has no rows.
    """
    size = microbatch_rows(batch, accumulate)
    if not all(len(rows) for rows, _ in sources):
        raise UserError("a dataset of --data has no packed training rows; prepare it again with more text")
    positions = [microbatch * size + int(row) for microbatch in range(accumulate) for row in local_rows(size)]
    mixed = _mixed(sources, seed)
    rows = mixed if transform is None else mixed.random_map(transform, seed=seed)
    selected = grain.MapDataset.source(_SelectedRows(rows, batch, positions))
    return selected.batch(len(positions), batch_fn=functools.partial(_stack, accumulate=accumulate))


class _SelectedRows:
    """The rows at the same positions of every batch."""

    def __init__(self, rows: Any, batch: int, positions: Sequence[int]) -> None:
        self._rows, self._batch, self._positions = rows, batch, positions

    def __len__(self) -> int:
        return len(self._rows) // self._batch * len(self._positions)

    def __getitem__(self, index: int) -> Microbatch:
        step, i = divmod(index, len(self._positions))
        return self._rows[step * self._batch + self._positions[i]]


def _mixed(sources: Sequence[tuple[Any, float | None]], seed: int) -> grain.MapDataset:
    shuffled = [grain.MapDataset.source(rows).seed(seed + i).shuffle().repeat() for i, (rows, _) in enumerate(sources)]
    weights = [len(rows) if weight is None else weight for rows, weight in sources]
    return shuffled[0] if len(shuffled) == 1 else grain.MapDataset.mix(shuffled, weights)


def _stack(rows: Sequence[Microbatch], accumulate: int) -> Batch:
    size = len(rows) // accumulate
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [{key: np.stack([row[key] for row in part]) for key in part[0]} for part in parts]


class ProcessShare(NamedTuple):
    """The part of each batch of contexts that one process builds.

    Attributes:
        local_rows: rows of a microbatch that this process builds.
        lengths: tokens of every context, so that all processes cut a batch equally; None if this process reads all.
    """

    local_rows: LocalRows = np.arange
    lengths: Integer[np.ndarray, " n"] | None = None


WHOLE_SHARE = ProcessShare()  # the share of a single process


def labelled_batches(
    contexts: LabelledContexts,
    batch: int,
    accumulate: int,
    seed: int,
    multiple: int = 1,
    share: ProcessShare = WHOLE_SHARE,
) -> grain.MapDataset:
    """Return batches of labelled contexts by step: one random draw of `batch`, run as microbatches by length.

    Args:
        contexts: contexts to draw from.
        batch: contexts of an update.
        accumulate: a microbatch has at most batch x limit / accumulate tokens.
        seed: seed of the order of the contexts.
        multiple: number that divides a microbatch's rows, so that they can be sharded over as many devices.
        share: part of each batch that this process builds.
    """
    drawn = grain.MapDataset.source(range(len(contexts))).seed(seed).shuffle().repeat()
    return drawn.batch(batch, batch_fn=_cutter(contexts, batch, accumulate, multiple, share))


def labelled_in_order(
    contexts: LabelledContexts, batch: int, accumulate: int, multiple: int = 1, share: ProcessShare = WHOLE_SHARE
) -> Iterator[Batch]:
    """Return all contexts once, in order, in batches of `batch`; the last batch may be smaller."""
    cut = _cutter(contexts, batch, accumulate, multiple, share)
    return iter(grain.MapDataset.source(range(len(contexts))).batch(batch, batch_fn=cut).to_iter_dataset(WORKERS))


def _cutter(
    contexts: LabelledContexts, batch: int, accumulate: int, multiple: int, share: ProcessShare
) -> Callable[[Sequence[int]], Batch]:
    budget = max(batch * contexts.window.limit // accumulate, contexts.window.limit)

    def cut(drawn: Sequence[int]) -> Batch:
        buckets = contexts.window.buckets
        if share.lengths is None:
            return microbatches([contexts[index] for index in drawn], buckets, budget, batch, multiple)
        lengths = [int(share.lengths[index]) for index in drawn]
        plans = plan_microbatches(lengths, buckets, budget, batch, multiple)
        return [_local_part(plan, drawn, contexts, share.local_rows) for plan in plans]

    return cut


def _local_part(
    plan: "MicrobatchPlan", drawn: Sequence[int], contexts: LabelledContexts, local_rows: LocalRows
) -> Microbatch:
    """Return this process's rows of a microbatch; no other context is read."""
    rows = local_rows(plan.rows)
    indices = [drawn[plan.positions[row]] for row in rows if row < len(plan.positions)]
    return _pad([contexts[index] for index in indices], len(rows), plan.length)


class MicrobatchPlan(NamedTuple):
    """The shape of a microbatch and the contexts in it.

    Attributes:
        positions: positions of the contexts in the batch.
        rows: number of rows, filler included.
        length: tokens of a row.
    """

    positions: list[int]
    rows: int
    length: int


def plan_microbatches(
    lengths: Sequence[int], buckets: Sequence[int], budget: int, max_rows: int, multiple: int = 1
) -> list[MicrobatchPlan]:
    """Cut contexts of given lengths into fixed shapes [budget / L, L], one for each bucket length L, longest first.

    Free rows in a bucket's last microbatch take the longest contexts of the next bucket, which would otherwise need
    further rows. The remaining rows are filler of weight zero.

    Args:
        lengths: tokens of each context.
        buckets: allowed lengths of a row, ascending.
        budget: maximum tokens of a microbatch.
        max_rows: maximum rows of a microbatch, before rounding up to `multiple`.
        multiple: number that divides a microbatch's rows.
    """
    waiting = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    plans: list[MicrobatchPlan] = []
    while waiting:
        length = bucket_of(lengths[waiting[0]], buckets)
        rows = min(max(budget // length, 1), max_rows)
        rows += -rows % multiple
        plans.append(MicrobatchPlan(waiting[:rows], rows, length))
        waiting = waiting[rows:]
    return plans


def microbatches(
    contexts: Sequence[LabelledContext], buckets: Sequence[int], budget: int, max_rows: int, multiple: int = 1
) -> Batch:
    """Return encoded contexts as microbatches by length; see `plan_microbatches`."""
    plans = plan_microbatches([len(context.tokens) for context in contexts], buckets, budget, max_rows, multiple)
    return [_pad([contexts[i] for i in plan.positions], plan.rows, plan.length) for plan in plans]


def _pad(contexts: Sequence[LabelledContext], rows: int, length: int) -> Microbatch:
    """Return `tokens` [B L] padded on the right, `lengths`, `slots` and `weights` [B]; filler rows have weight 0."""
    tokens, lengths = pad_rows([context.tokens for context in contexts], length, rows)
    slots = np.array([context.slot for context in contexts] + [-1] * (rows - len(contexts)), np.int32)
    weights = (slots >= 0).astype(np.float32)
    return {"tokens": tokens, "lengths": lengths, "slots": np.maximum(slots, 0), "weights": weights}


def steps_for_epochs(epochs: float, rows: int, batch: int) -> int:
    """Return the number of updates in `epochs` passes; the last update may reach into the next pass."""
    return max(math.ceil(epochs * rows / batch - 1e-9), 1)


def batches_from(batches: grain.MapDataset, start: int, stop: int) -> Iterator[Batch]:
    """Return batches[start], ..., batches[stop - 1], prefetched by threads."""
    return iter(batches[start:stop].to_iter_dataset(WORKERS))
