"""`batch_at(step)`: a pure function of (seed, step), for packed rows, labelled contexts and weighted mixtures.

A batch is a list of microbatches, each a dict of arrays of one of a few fixed shapes; the gradient of a batch is
that of its rows together, however they are cut. An epoch is a seeded permutation, so any host can make any part
of any step, and resuming is asking for a later step. Of several processes each makes its own rows alone.

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
LocalRows = Callable[
    [int], Integer[np.ndarray, " own"]
]  # of so many rows of a microbatch, those that this process makes


def microbatch_rows(batch: int, accumulate: int) -> int:
    """Rows computed at a time where a batch is cut into so many equal pieces.

    Raises:
        UserError: it cannot be.
    """
    if batch % accumulate:
        raise UserError(
            f"--gradient_accumulation_steps={accumulate} does not divide --batch_size={batch}; choose one that does"
        )
    return batch // accumulate


def row_batches(
    sources: Sequence[tuple[Any, float | None]],
    batch: int,
    accumulate: int,
    seed: int,
    own: LocalRows = np.arange,
    changed: RowTransform | None = None,
) -> grain.MapDataset:
    """Batches of packed rows by step, out of datasets mixed by weight.

    Args:
        sources: (rows, weight) pairs; a weight of None is the source's number of rows, so an epoch sees each once.
        batch: rows an update.
        accumulate: equal pieces the rows are computed in.
        seed: of the order of the rows.
        own: the rows of a piece that are read and made; all of them unless it is given.
        changed: what is made of a row with a generator that is seeded by its place, so anew in each pass.

    Raises:
        UserError: `accumulate` does not divide `batch`, or a source has no rows.
    """
    size = microbatch_rows(batch, accumulate)
    if not all(len(rows) for rows, _ in sources):
        raise UserError("a dataset of --data has no packed training rows; prepare it again with more text")
    places = [piece * size + int(row) for piece in range(accumulate) for row in own(size)]
    mixed = _mixed(sources, seed)
    rows = mixed if changed is None else mixed.random_map(changed, seed=seed)
    picked = grain.MapDataset.source(_Picked(rows, batch, places))
    return picked.batch(len(places), batch_fn=functools.partial(_stack, pieces=accumulate))


class _Picked:
    """The rows at some places of each batch."""

    def __init__(self, rows: Any, batch: int, places: Sequence[int]) -> None:
        self._rows, self._batch, self._places = rows, batch, places

    def __len__(self) -> int:
        return len(self._rows) // self._batch * len(self._places)

    def __getitem__(self, index: int) -> Microbatch:
        step, place = divmod(index, len(self._places))
        return self._rows[step * self._batch + self._places[place]]


def _mixed(sources: Sequence[tuple[Any, float | None]], seed: int) -> grain.MapDataset:
    shuffled = [grain.MapDataset.source(rows).seed(seed + i).shuffle().repeat() for i, (rows, _) in enumerate(sources)]
    weights = [len(rows) if weight is None else weight for rows, weight in sources]
    return shuffled[0] if len(shuffled) == 1 else grain.MapDataset.mix(shuffled, weights)


def _stack(rows: Sequence[Microbatch], pieces: int) -> Batch:
    size = len(rows) // pieces
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [{key: np.stack([row[key] for row in part]) for key in part[0]} for part in parts]


class ProcessShare(NamedTuple):
    """What one of several processes makes of each batch of contexts.

    Attributes:
        own: its rows of a microbatch.
        sizes: tokens of every context, by which all processes cut a batch alike; None where one reads them all.
    """

    own: LocalRows = np.arange
    sizes: Integer[np.ndarray, " n"] | None = None


WHOLE_SHARE = ProcessShare()  # of a process that is alone


def labelled_batches(
    contexts: LabelledContexts,
    batch: int,
    accumulate: int,
    seed: int,
    multiple: int = 1,
    share: ProcessShare = WHOLE_SHARE,
) -> grain.MapDataset:
    """Batches of labelled contexts by step: one random draw of `batch`, run as microbatches by length.

    Args:
        contexts: what is drawn from.
        batch: contexts an update.
        accumulate: a microbatch has at most batch x limit / accumulate tokens.
        seed: of the order of the contexts.
        multiple: of which a microbatch's rows are, so that they can be cut over as many devices.
        share: of this process.
    """
    drawn = grain.MapDataset.source(range(len(contexts))).seed(seed).shuffle().repeat()
    return drawn.batch(batch, batch_fn=_cutter(contexts, batch, accumulate, multiple, share))


def labelled_in_order(
    contexts: LabelledContexts, batch: int, accumulate: int, multiple: int = 1, share: ProcessShare = WHOLE_SHARE
) -> Iterator[Batch]:
    """All contexts once, in order, `batch` at a time, the last one short; for validation."""
    cut = _cutter(contexts, batch, accumulate, multiple, share)
    return iter(grain.MapDataset.source(range(len(contexts))).batch(batch, batch_fn=cut).to_iter_dataset(WORKERS))


def _cutter(
    contexts: LabelledContexts, batch: int, accumulate: int, multiple: int, share: ProcessShare
) -> Callable[[Sequence[int]], Batch]:
    budget = max(batch * contexts.window.limit // accumulate, contexts.window.limit)

    def cut(drawn: Sequence[int]) -> Batch:
        if share.sizes is None:
            read = [contexts[index] for index in drawn]
            return microbatches(read, contexts.window.buckets, budget, batch, multiple)
        parts = plan_microbatches(
            [int(share.sizes[index]) for index in drawn], contexts.window.buckets, budget, batch, multiple
        )
        return [_part([drawn[place] for place in part.places], part, contexts, share.own) for part in parts]

    return cut


def _part(drawn: Sequence[int], part: "MicrobatchPlan", contexts: LabelledContexts, own: LocalRows) -> Microbatch:
    """This process's rows of a microbatch; only they are read."""
    rows = own(part.rows)
    return _pad([contexts[drawn[row]] for row in rows if row < len(drawn)], len(rows), part.length)


class MicrobatchPlan(NamedTuple):
    """A microbatch: the places of its contexts in the batch, rows with filler, and tokens of a row."""

    places: list[int]
    rows: int
    length: int


def plan_microbatches(
    sizes: Sequence[int], lengths: Sequence[int], budget: int, most: int, multiple: int = 1
) -> list[MicrobatchPlan]:
    """LabelledContexts of these sizes as fixed shapes [budget / L, L], one for each bucket length L, longest first.

    The free rows of a bucket's last microbatch take the longest contexts of the next bucket, which would cost
    rows of their own otherwise; what is left is filled with rows of weight zero.
    """
    waiting = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    found: list[MicrobatchPlan] = []
    while waiting:
        length = bucket_of(sizes[waiting[0]], lengths)
        rows = min(max(budget // length, 1), most)
        rows += -rows % multiple
        found.append(MicrobatchPlan(waiting[:rows], rows, length))
        waiting = waiting[rows:]
    return found


def microbatches(
    contexts: Sequence[LabelledContext], lengths: Sequence[int], budget: int, most: int, multiple: int = 1
) -> Batch:
    """LabelledContexts cut by their lengths, all their rows."""
    parts = plan_microbatches([len(context.tokens) for context in contexts], lengths, budget, most, multiple)
    return [_pad([contexts[place] for place in part.places], part.rows, part.length) for part in parts]


def _pad(contexts: Sequence[LabelledContext], rows: int, length: int) -> Microbatch:
    """`tokens` [B L] padded on the right, `lengths`, `slots` and `weights` [B]; filler rows weigh 0."""
    tokens, lengths = pad_rows([context.tokens for context in contexts], length, rows)
    slots = np.array([context.slot for context in contexts] + [-1] * (rows - len(contexts)), np.int32)
    weights = (slots >= 0).astype(np.float32)
    return {"tokens": tokens, "lengths": lengths, "slots": np.maximum(slots, 0), "weights": weights}


def steps_for_epochs(epochs: float, rows: int, batch: int) -> int:
    """Updates that `epochs` passes take; the last may reach into the next pass."""
    return max(math.ceil(epochs * rows / batch - 1e-9), 1)


def batches_from(batches: grain.MapDataset, start: int, stop: int) -> Iterator[Batch]:
    """Batches `start` to `stop`, made ahead by threads; the same as batches[start], batches[start + 1], ..."""
    return iter(batches[start:stop].to_iter_dataset(WORKERS))
