"""The language-model loss of an adapt run on whole cases, or packed rows of other text, that it never read, one by one.

Of BERT it is that of masked tokens, the same ones whichever checkpoint is asked.

Dims: L length of a row, D hidden, V vocabulary, C cases (or rows), P places of a row with a loss.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PyTree
from tqdm import tqdm

from jaxtempl.data.mlm import Masker
from jaxtempl.data.packing import Packer, Row
from jaxtempl.models import bert
from jaxtempl.runs.run import Run
from jaxtempl.text import formats
from jaxtempl.text.cases import Case
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.training.precision import compute_dtype

CASES = 256  # read and tokenized at a time
CHUNK = 128  # positions whose logits exist at a time
ROWS = 4096  # packed rows that are enough


Score = Callable[[PyTree, Row, int], tuple[np.ndarray, np.ndarray]]  # parameters, a row, its number: places, losses


class LossSums(NamedTuple):
    """Sums of each case or row.

    Attributes:
        loss: nats over the predicted tokens.
        predicted: tokens with a loss: all but the first of each row; of BERT, those that were masked.
        tokens: all, the end-of-text included.
        size: bytes of the text.
    """

    loss: Float[np.ndarray, " C"]
    predicted: Float[np.ndarray, " C"]
    tokens: Float[np.ndarray, " C"]
    size: Float[np.ndarray, " C"]


def measure_cases(run: Run, params: PyTree, cases: Sequence[Case], progress: bool = False) -> LossSums:
    """Sums of each case, packed in order as prepare packs them, in rows as long as the run was trained on.

    A token's loss belongs to the case it is in, also where the row's case before is part of what it is read after.
    """
    sums = LossSums(*(np.zeros(len(cases)) for _ in LossSums._fields))
    score = _scored(run)
    first = 0  # case that the next row begins in
    with tqdm(total=len(cases), desc="cases", unit="", disable=not progress) as bar:
        for number, row in enumerate(_rows(cases, run.tokenizer, run.manifest["length"], sums)):
            ends = np.cumsum((row["tokens"] == run.tokenizer.end_of_text) & (row["segments"] > 0))
            case = first + np.concatenate([[0], ends[:-1]])
            places, losses = score(params, row, number)
            np.add.at(sums.loss, case[places], losses)
            np.add.at(sums.predicted, case[places], 1)
            bar.update(int(ends[-1]))
            first += int(ends[-1])
    return sums


def measure_rows(
    run: Run, params: PyTree, rows: Sequence[Row], bytes_a_token: float, progress: bool = False
) -> LossSums:
    """Sums of the first packed rows, which prepare has put in a random order; of text that is in no case."""
    sums = LossSums(*(np.zeros(min(len(rows), ROWS)) for _ in LossSums._fields))
    score = _scored(run)
    for number in tqdm(range(len(sums.loss)), desc="rows", unit="", disable=not progress):
        row = rows[number]
        places, losses = score(params, row, number)
        sums.loss[number], sums.predicted[number] = losses.sum(), len(places)
        sums.tokens[number] = np.count_nonzero(row["segments"])
    return sums._replace(size=sums.tokens * bytes_a_token)


def _scored(run: Run) -> Score:
    return (_masked if run.architecture.family == "bert" else _causal)(run)


def _rows(cases: Sequence[Case], tokenizer: Tokenizer, length: int, sums: LossSums) -> Iterator[Row]:
    """Packed rows; tokens and bytes of each case are noted in `sums` on the way."""
    packer = Packer(length)
    for start in range(0, len(cases), CASES):
        texts = [formats.document(cases[i].messages) for i in range(start, min(start + CASES, len(cases)))]
        documents = [[*ids, tokenizer.end_of_text] for ids in tokenizer.encode(texts)]
        lengths = np.array([len(ids) for ids in documents], np.int64)
        sums.tokens[start : start + len(texts)] = lengths
        sums.size[start : start + len(texts)] = [len(t.encode()) for t in texts]
        yield from packer.add(np.concatenate([np.array(ids, np.uint16) for ids in documents]), lengths)
    yield from packer.finish()


def _causal(run: Run) -> Score:
    """Of every token but the first; no row's logits ever exist whole."""
    graphdef = run.graphdef(compute_dtype("auto"))

    @jax.jit
    def losses(params: PyTree, tokens: Int[Array, " L"], segments: Int[Array, " L"]) -> Float32[Array, " L-1"]:
        model: Any = nnx.merge(graphdef, params)
        hidden = model.hidden(tokens[None], segments[None] if run.manifest["mask_documents"] else None)[0]
        kernel = params["head"]["kernel"].astype(hidden.dtype)

        def one(position: tuple[Array, Array]) -> Array:
            values = jnp.matmul(position[0], kernel, preferred_element_type=jnp.float32)
            return jax.nn.logsumexp(values) - values[position[1]]

        return jax.lax.map(one, (hidden[:-1], tokens[1:]), batch_size=CHUNK)

    def score(params: PyTree, row: Row, _: int) -> tuple[Int[np.ndarray, " P"], Float32[np.ndarray, " P"]]:
        tokens, segments = (jnp.asarray(row[name], jnp.int32) for name in ("tokens", "segments"))
        places = 1 + np.flatnonzero(row["segments"][1:] > 0)
        return places, np.asarray(losses(params, tokens, segments))[places - 1]

    return score


def _masked(run: Run) -> Score:
    """Of the tokens that a generator seeded by the row's number hides."""
    graphdef, masker = run.graphdef(compute_dtype("auto")), Masker(run.tokenizer)

    @jax.jit
    def losses(params: PyTree, row: dict[str, Array]) -> Float32[Array, " M"]:
        model: Any = nnx.merge(graphdef, params)
        allowed = bert.attention_mask(row["segments"][None], run.manifest["mask_documents"])
        told = model.head(model.hidden(row["tokens"][None], allowed)[0, row["places"]])
        table = params["embed"]["embedding"].astype(told.dtype)
        logits = jnp.matmul(told, table.T, preferred_element_type=jnp.float32) + params["head"]["bias"][None]
        true = jnp.take_along_axis(logits, row["targets"][:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - true

    def score(params: PyTree, row: Row, number: int) -> tuple[Int[np.ndarray, " P"], Float32[np.ndarray, " P"]]:
        made = masker(row, np.random.default_rng(number))
        real = made["weights"] > 0
        found = np.asarray(losses(params, {name: jnp.asarray(part) for name, part in made.items()}))
        return made["places"][real] - 1, found[real]  # behind [CLS] all is one place further

    return score
