"""A zero-shot exam of a language model: is the reply that was sent likelier to it than other templates' texts?

After a context, in the form that adapting reads (`<ADVOCATE>:` begins the reply), the log-likelihood of every
template's text, to the end of its line, is its score; a softmax over the texts is the answer. Likelihoods favour what
is short and said often, so that a second answer is by how much the context has made a text likelier than it is after
the tag alone (Holtzman et al., 2021, arXiv 2104.08315). Nothing is trained. It is the scaling study's measure of what a
language model knows of the task (issue 6).

Dims: N contexts, T texts, L length of a row, R rows computed at a time, P tokens of a text, D hidden, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int, Int32, PyTree
from tqdm import tqdm

from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.data.sampling import nested_subset
from jaxtempl.errors import UserError
from jaxtempl.runs.run import Run
from jaxtempl.text import formats
from jaxtempl.text.window import pad_rows
from jaxtempl.training.precision import compute_dtype

ROWS = 32  # computed at a time


class ZeroShotScores(NamedTuple):
    """What a language model answered.

    Attributes:
        case: which case each context is of.
        scores: log-likelihood of each text after each context, nats.
        before: the same after no context.
        right: the text that was sent.
    """

    case: Int[np.ndarray, " N"]
    scores: Float32[np.ndarray, "N T"]
    before: Float32[np.ndarray, " T"]
    right: Int[np.ndarray, " N"]


class TemplateTexts(NamedTuple):
    """Texts of templates, each once, as tokens padded on the right."""

    of_slot: dict[int, int]
    tokens: Int32[np.ndarray, "T P"]
    lengths: Int32[np.ndarray, " T"]


def score_templates(
    run: Run, params: PyTree, dataset: Dataset, split: str, wanted: int, seed: int, progress: bool
) -> ZeroShotScores:
    """Examines a causal language model on some labelled contexts of a split.

    Args:
        run: an adapt run of GPT-NeoX.
        params: of its checkpoint.
        dataset: with labels.
        split: of them.
        wanted: contexts, drawn by `seed`; all where there are no more.
        seed: of the draw.
        progress: show a bar.

    Raises:
        UserError: the run is a BERT, or nothing of the split is labelled with a template that has a text.
    """
    if run.architecture.family == "bert":
        raise UserError(f"{run.folder} is a BERT, which gives no text a likelihood; leave --zero_shot out")
    texts = _texts(run, dataset)
    asked = LabelledContexts.read(dataset, split, run.window)
    sat = np.flatnonzero(np.isin(asked.slot, list(texts.of_slot)))
    if not len(sat):
        raise UserError(
            f"{dataset.folder} has no labelled {split} contexts whose templates have texts; leave --zero_shot out"
        )
    chosen = np.sort(sat[nested_subset(len(sat), wanted, seed)])
    score = _scorer(run, params, texts)
    bar = tqdm(chosen, desc="zero-shot", unit=" contexts", disable=not progress)
    scores = np.stack([score(prompt(asked, int(index))) for index in bar])
    right = np.array([texts.of_slot[int(slot)] for slot in asked.slot[chosen]])
    return ZeroShotScores(asked.case[chosen], scores, score(formats.TAGS["advocate"].rstrip()), right)


def prompt(asked: LabelledContexts, index: int) -> str:
    """All before a labelled reply, and the tag that begins it."""
    said = formats.document(asked.messages(index))
    return (f"{said}\n" if said else "") + formats.TAGS["advocate"].rstrip()


def _texts(run: Run, dataset: Dataset) -> TemplateTexts:
    """The texts of all active templates, no longer than half a row, which leaves the other half to the context."""
    written = {t.slot: t.text for t in dataset.templates if t.active and t.text.strip()}
    distinct = {said: i for i, said in enumerate(dict.fromkeys(written.values()))}
    encoded = run.tokenizer.encode([f" {said}\n" for said in distinct]) if distinct else []
    most = run.manifest["length"] // 2
    cut = [ids[:most] for ids in encoded]
    tokens, lengths = pad_rows(cut, max(map(len, cut), default=0))
    return TemplateTexts({slot: distinct[said] for slot, said in written.items()}, tokens, lengths)


def _scorer(run: Run, params: PyTree, texts: TemplateTexts) -> Any:
    """A function from a prompt to the scores of all texts."""
    graphdef, length = run.graphdef(compute_dtype("auto")), run.manifest["length"]

    @jax.jit
    def likelihoods(
        params: PyTree,
        rows: Int[Array, "R L"],
        starts: Int[Array, " R"],
        texts: Int[Array, "R P"],
        ends: Int[Array, " R"],
    ) -> Float32[Array, " R"]:
        model: Any = nnx.merge(graphdef, params)
        places = jnp.clip(starts[:, None] - 1 + jnp.arange(texts.shape[1])[None], 0, rows.shape[1] - 1)
        hidden = jnp.take_along_axis(model.hidden(rows), places[..., None], axis=1)  # of the places before each token
        values = jnp.matmul(hidden, params["head"]["kernel"].astype(hidden.dtype), preferred_element_type=jnp.float32)
        true = jnp.take_along_axis(values, texts[..., None], axis=2)[..., 0] - jax.nn.logsumexp(values, axis=2)
        return jnp.sum(jnp.where(jnp.arange(texts.shape[1])[None] < ends[:, None], true, 0.0), axis=1)

    def score(prompt: str) -> Float32[np.ndarray, " T"]:
        (before,) = run.tokenizer.encode([prompt])
        parts = [likelihoods(params, *part) for part in _rows(before, texts, length)]
        return np.concatenate(parts)[: len(texts.lengths)]

    return score


def _rows(before: Sequence[int], texts: TemplateTexts, length: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Rows of the prompt's end and a text, ROWS at a time, the last filled up."""
    count = len(texts.lengths)
    for first in range(0, count, ROWS):
        own = np.minimum(np.arange(first, first + ROWS), count - 1)
        rows, starts = np.zeros((ROWS, length), np.int32), np.zeros(ROWS, np.int32)
        for row, (i, text_) in enumerate(zip(own, texts.tokens[own], strict=True)):
            kept = before[-(length - int(texts.lengths[i])) :]
            ids = [*kept, *text_[: texts.lengths[i]]]
            rows[row, : len(ids)], starts[row] = ids, len(kept)
        yield rows, starts, texts.tokens[own], texts.lengths[own]
