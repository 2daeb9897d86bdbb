"""The language-model loss of an adapt run on whole cases that it never read, case by case.

Dims: L length of a row, D hidden, V vocabulary, C cases.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PyTree
from tqdm import tqdm

from jaxtempl import text
from jaxtempl.cases import Case
from jaxtempl.precision import compute_dtype
from jaxtempl.prepare.packing import Packer, Row
from jaxtempl.run import Run
from jaxtempl.tokenizer import Tokenizer

CASES = 256  # read and tokenized at a time
CHUNK = 128  # positions whose logits exist at a time


class Sums(NamedTuple):
    """Sums of each case.

    Attributes:
        loss: nats over the predicted tokens.
        predicted: tokens with a loss: all but the first of each row.
        tokens: all, the end-of-text included.
        size: bytes of the text.
    """

    loss: Float[np.ndarray, " C"]
    predicted: Float[np.ndarray, " C"]
    tokens: Float[np.ndarray, " C"]
    size: Float[np.ndarray, " C"]


def measure(run: Run, params: PyTree, cases: Sequence[Case], progress: bool = False) -> Sums:
    """Sums of each case, packed in order as prepare packs them, in rows as long as the run was trained on.

    A token's loss belongs to the case it is in, also where the row's case before is part of what it is read after.
    """
    sums = Sums(*(np.zeros(len(cases)) for _ in Sums._fields))
    losses = _token_losses(run)
    first = 0  # case that the next row begins in
    with tqdm(total=len(cases), desc="cases", unit="", disable=not progress) as bar:
        for row in _rows(cases, run.tokenizer, run.manifest["length"], sums):
            real = row["segments"] > 0
            ends = np.cumsum((row["tokens"] == run.tokenizer.end_of_text) & real)
            case = first + np.concatenate([[0], ends[:-1]])
            predicted = real[1:]
            tokens, segments = (jnp.asarray(row[name], jnp.int32) for name in ("tokens", "segments"))
            values = np.asarray(losses(params, tokens, segments))
            np.add.at(sums.loss, case[1:][predicted], values[predicted])
            np.add.at(sums.predicted, case[1:][predicted], 1)
            bar.update(int(ends[-1]))
            first += int(ends[-1])
    return sums


def _rows(cases: Sequence[Case], tokenizer: Tokenizer, length: int, sums: Sums) -> Iterator[Row]:
    """Packed rows; tokens and bytes of each case are noted in `sums` on the way."""
    packer = Packer(length)
    for start in range(0, len(cases), CASES):
        texts = [text.document(cases[i].messages) for i in range(start, min(start + CASES, len(cases)))]
        documents = [[*ids, tokenizer.end_of_text] for ids in tokenizer.encode(texts)]
        lengths = np.array([len(ids) for ids in documents], np.int64)
        sums.tokens[start : start + len(texts)] = lengths
        sums.size[start : start + len(texts)] = [len(t.encode()) for t in texts]
        yield from packer.add(np.concatenate([np.array(ids, np.uint16) for ids in documents]), lengths)
    yield from packer.finish()


def _token_losses(run: Run) -> Callable[[PyTree, Array, Array], Array]:
    """(params, a row, its segments) -> the loss of each token but the first; no row's logits ever exist whole."""
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

    return losses
