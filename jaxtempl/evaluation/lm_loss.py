"""The language-model loss of an adapt run on held-out cases, or on held-out packed rows of other text.

A causal model predicts every token but the first of a row. BERT predicts masked tokens; the generator that masks a row
is seeded by the row's number, so every checkpoint predicts the same tokens.

Dims: C cases (or rows), L length of a row, B rows of a microbatch, P positions of a row with a target.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from jaxtempl.data.dataset import PackedRow
from jaxtempl.data.loader import Microbatch
from jaxtempl.data.mlm import Masker
from jaxtempl.data.packing import Packer
from jaxtempl.evaluation.token_losses import TokenLosses
from jaxtempl.text import formats
from jaxtempl.text.cases import Case
from jaxtempl.text.tokenizer import Tokenizer

CASES = 256  # read and tokenized at a time
MAX_ROWS = 4096  # packed rows that suffice


class LossSums(NamedTuple):
    """Sums of each case or row.

    Attributes:
        loss: loss of the predicted tokens, in nats.
        predicted: number of predicted tokens: all but the first of each row; of BERT, the masked ones.
        tokens: number of tokens, end-of-text included.
        size: bytes of the text.
    """

    loss: Float[np.ndarray, " C"]
    predicted: Float[np.ndarray, " C"]
    tokens: Float[np.ndarray, " C"]
    size: Float[np.ndarray, " C"]


class NumberedRow(NamedTuple):
    """A packed row with the case, or the row of the sums, that each of its tokens belongs to."""

    row: PackedRow
    owner: Int[np.ndarray, " L"]


def measure_cases(losses: TokenLosses, cases: Sequence[Case], progress: bool = False) -> LossSums:
    """Return the sums of each case, packed in order as prepare packs them, in rows as long as those of training.

    A token's loss belongs to the token's case, also where the model reads the case before it in the same row.
    """
    run = losses.run
    sums = _zeros(len(cases))
    rows = _with_cases(_pack(cases, run.tokenizer, run.manifest["length"], sums), run.tokenizer.end_of_text)
    with tqdm(total=len(cases), desc="cases", unit="", disable=not progress) as bar:
        for owners in _add_losses(losses, rows, sums):
            bar.update(min(int(owners.max()) + 1, len(cases)) - bar.n)
    return sums


def measure_rows(
    losses: TokenLosses, rows: Sequence[PackedRow], bytes_per_token: float, progress: bool = False
) -> LossSums:
    """Return the sums of the first packed rows, which prepare has written in random order.

    Args:
        losses: the checkpoint.
        rows: packed rows of text that is in no case.
        bytes_per_token: bytes of the text per token.
        progress: show a bar.
    """
    sums = _zeros(min(len(rows), MAX_ROWS))
    numbered = (NumberedRow(rows[i], np.full(len(rows[i]["tokens"]), i)) for i in range(len(sums.loss)))
    with tqdm(total=len(sums.loss), desc="rows", unit="", disable=not progress) as bar:
        for owners in _add_losses(losses, numbered, sums):
            bar.update(len(owners))
    sums.tokens[:] = [np.count_nonzero(rows[i]["segments"]) for i in range(len(sums.loss))]
    return sums._replace(size=sums.tokens * bytes_per_token)


def _zeros(count: int) -> LossSums:
    return LossSums(*(np.zeros(count) for _ in LossSums._fields))


def _pack(cases: Sequence[Case], tokenizer: Tokenizer, length: int, sums: LossSums) -> Iterator[PackedRow]:
    """Yield packed rows, and note the tokens and bytes of each case in `sums`."""
    packer = Packer(length)
    for start in range(0, len(cases), CASES):
        texts = [formats.document(cases[i].messages) for i in range(start, min(start + CASES, len(cases)))]
        documents = [[*ids, tokenizer.end_of_text] for ids in tokenizer.encode(texts)]
        lengths = np.array([len(ids) for ids in documents], np.int64)
        sums.tokens[start : start + len(texts)] = lengths
        sums.size[start : start + len(texts)] = [len(t.encode()) for t in texts]
        yield from packer.add(np.concatenate([np.array(ids, np.uint16) for ids in documents]), lengths)
    yield from packer.finish()


def _with_cases(rows: Iterable[PackedRow], end_of_text: int) -> Iterator[NumberedRow]:
    """Number the case of each token: a case ends with an end-of-text."""
    first = 0  # case that the row begins in
    for row in rows:
        ended = np.cumsum((row["tokens"] == end_of_text) & (row["segments"] > 0))
        yield NumberedRow(row, first + np.concatenate([[0], ended[:-1]]))
        first += int(ended[-1])


def _add_losses(
    losses: TokenLosses, rows: Iterable[NumberedRow], sums: LossSums
) -> Iterator[Int[np.ndarray, "rows L"]]:
    """Add each token's loss to its case; yield the owners of the tokens of each microbatch that is done."""
    masker = Masker(losses.run.tokenizer) if losses.run.architecture.family == "bert" else None
    count = losses.rows(losses.run.manifest["length"])
    numbers = itertools.count()
    numbered = iter(rows)
    while batch := list(itertools.islice(numbered, count)):
        inputs = [_inputs(row.row, masker, next(numbers)) for row in batch]
        values = losses(_stack(inputs, count))[: len(batch)]
        owners = np.stack([row.owner for row in batch])
        positions, is_predicted = _targets(inputs)
        owner = np.take_along_axis(owners, positions, axis=1)[is_predicted]
        np.add.at(sums.loss, owner, values[is_predicted])
        np.add.at(sums.predicted, owner, 1)
        yield owners


def _inputs(row: PackedRow, masker: Masker | None, number: int) -> Microbatch:
    """Return what the objective reads of a row."""
    return row if masker is None else masker(row, np.random.default_rng(number))


def _stack(inputs: Sequence[Microbatch], count: int) -> Microbatch:
    """Stack rows to a microbatch of `count`; the rows that are missing are zero, and predict nothing."""
    stacked = {name: np.stack([row[name] for row in inputs]).astype(np.int32) for name in inputs[0]}
    missing = count - len(inputs)
    return {name: np.pad(a, [(0, missing), *[(0, 0)] * (a.ndim - 1)]) for name, a in stacked.items()}


def _targets(inputs: Sequence[Microbatch]) -> tuple[Int[np.ndarray, "rows P"], np.ndarray]:
    """Return the position in the packed row of each target, and whether there is one."""
    if "positions" in inputs[0]:
        # [CLS] comes first, so a position is one later than in the packed row.
        masked = np.stack([row["positions"] for row in inputs])
        is_predicted = np.stack([row["weights"] for row in inputs]) > 0
        return np.where(is_predicted, masked - 1, 0), is_predicted
    segments = np.stack([row["segments"] for row in inputs])
    following = np.roll(segments, -1, axis=1)
    following[:, -1] = 0
    positions = np.broadcast_to(np.roll(np.arange(segments.shape[1]), -1)[None], segments.shape)
    return positions, following > 0
