"""Zero-shot scoring of a language model: is the reply that was sent likelier than the texts of other templates?

Each context is written as adaptation reads it, up to the tag `<ADVOCATE>:` that begins the reply. The score of a
template is the log-likelihood of its text, to the end of the line; the answer is a softmax over the texts. Likelihood
favours short and frequent texts. A second score therefore subtracts the log-likelihood of the text after the tag alone:
how much likelier the context has made it (Holtzman et al., 2021, arXiv 2104.08315). Nothing is trained on labels. The
scaling study measures with it what a language model knows of the task (issue 6).

Dims: N contexts, T texts, L length of a row, B rows of a microbatch, P tokens of a text.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32
from tqdm import tqdm

from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.data.loader import Microbatch
from jaxtempl.data.sampling import nested_subset
from jaxtempl.errors import UserError
from jaxtempl.evaluation.token_losses import TokenLosses
from jaxtempl.runs.run import Run
from jaxtempl.text import formats
from jaxtempl.text.window import pad_rows

SHORTEST = 64  # tokens of the shortest rows; longer ones have twice as many, and so on
TAG = formats.TAGS["advocate"].rstrip()


class ZeroShotScores(NamedTuple):
    """Scores of a language model that was trained on no labels.

    Attributes:
        case: case of each context.
        scores: log-likelihood of each text after each context, in nats.
        before: log-likelihood of each text after the tag alone, in nats.
        right: index of the text that was sent.
    """

    case: Int[np.ndarray, " N"]
    scores: Float32[np.ndarray, "N T"]
    before: Float32[np.ndarray, " T"]
    right: Int[np.ndarray, " N"]


class TemplateTexts(NamedTuple):
    """Distinct texts of templates as tokens, padded on the right.

    Attributes:
        of_slot: index of the text of each slot.
        tokens: token ids.
        lengths: number of real tokens.
    """

    of_slot: dict[int, int]
    tokens: Int32[np.ndarray, "T P"]
    lengths: Int32[np.ndarray, " T"]


def check_family(run: Run) -> None:
    """Raise UserError for a run that gives no text a likelihood."""
    if run.architecture.family == "bert":
        raise UserError(f"{run.folder} is a BERT, which gives no text a likelihood; leave --zero_shot out")


def score_templates(
    losses: TokenLosses, dataset: Dataset, split: str, count: int, seed: int, progress: bool
) -> ZeroShotScores:
    """Score the texts of all templates after some labelled contexts of a split.

    Args:
        losses: a checkpoint of an adapt run of GPT-NeoX.
        dataset: a dataset with labels.
        split: side of the dataset.
        count: number of contexts, sampled by `seed`; all, where there are fewer.
        seed: seed of the sample.
        progress: show a bar.

    Raises:
        UserError: the run is a BERT, or the split has no label whose template has a text.
    """
    check_family(losses.run)
    texts = _template_texts(losses.run, dataset)
    contexts = _sample(losses.run, dataset, split, texts, count, seed)
    prompts = losses.run.tokenizer.encode([*(prompt(contexts, i) for i in range(len(contexts))), TAG])
    scores = _log_likelihoods(losses, prompts, texts, progress)
    right = np.array([texts.of_slot[int(slot)] for slot in contexts.slot])
    return ZeroShotScores(contexts.case, scores[:-1], scores[-1], right)


def prompt(contexts: LabelledContexts, index: int) -> str:
    """Return the messages before a labelled reply, and the tag that begins the reply."""
    document = formats.document(contexts.messages(index))
    return (f"{document}\n" if document else "") + TAG


def _sample(run: Run, dataset: Dataset, split: str, texts: TemplateTexts, count: int, seed: int) -> LabelledContexts:
    """Return a seeded sample, in order, of the contexts whose template has a text."""
    contexts = LabelledContexts.read(dataset, split, run.window)
    with_text = np.flatnonzero(np.isin(contexts.slot, list(texts.of_slot)))
    if not len(with_text):
        raise UserError(
            f"{dataset.folder} has no labelled {split} contexts whose templates have texts; leave --zero_shot out"
        )
    return contexts.take(np.sort(with_text[nested_subset(len(with_text), count, seed)]))


def _template_texts(run: Run, dataset: Dataset) -> TemplateTexts:
    """Return the texts of the active templates, cut to half a row, which leaves the other half to the context."""
    by_slot = {t.slot: t.text for t in dataset.templates if t.active and t.text.strip()}
    index = {text: i for i, text in enumerate(dict.fromkeys(by_slot.values()))}
    encoded = run.tokenizer.encode([f" {text}\n" for text in index]) if index else []
    limit = run.manifest["length"] // 2
    cut = [ids[:limit] for ids in encoded]
    tokens, lengths = pad_rows(cut, max(map(len, cut), default=0))
    return TemplateTexts({slot: index[text] for slot, text in by_slot.items()}, tokens, lengths)


def _log_likelihoods(
    losses: TokenLosses, prompts: Sequence[Sequence[int]], texts: TemplateTexts, progress: bool
) -> Float32[np.ndarray, "N T"]:
    """Return the log-likelihood of each text after each prompt; rows of about equal length are computed together."""
    limit, longest_text = losses.run.manifest["length"], texts.tokens.shape[1]

    def bucket(pair: tuple[int, int]) -> int:
        needed = len(prompts[pair[0]]) + longest_text
        return min(limit, max(SHORTEST, 1 << (needed - 1).bit_length()))

    scores = np.empty((len(prompts), len(texts.lengths)), np.float32)
    shortest_first = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    pairs = itertools.product(shortest_first, range(len(texts.lengths)))
    with tqdm(total=scores.size, desc="zero-shot", unit=" texts", disable=not progress) as bar:
        for length, group in itertools.groupby(pairs, bucket):
            while batch := list(itertools.islice(group, losses.rows(length))):
                microbatch = _microbatch(prompts, texts, batch, length, losses.rows(length))
                weighted = losses(microbatch) * microbatch["weights"]
                scores[tuple(np.array(batch).T)] = -weighted[: len(batch)].sum(axis=1)
                bar.update(len(batch))
    return scores


def _microbatch(
    prompts: Sequence[Sequence[int]], texts: TemplateTexts, pairs: Sequence[tuple[int, int]], length: int, count: int
) -> Microbatch:
    """Return rows of the end of a prompt and a text, in which the tokens of the text are the targets."""
    rows = []
    for prompt_index, text_index in pairs:
        text = texts.tokens[text_index, : texts.lengths[text_index]].tolist()
        rows.append([*prompts[prompt_index][-(length - len(text)) :], *text])
    tokens, lengths = pad_rows(rows, length, count)
    chosen = [text_index for _, text_index in pairs]
    targets, ends = np.zeros((count, texts.tokens.shape[1]), np.int32), np.zeros(count, np.int32)
    targets[: len(pairs)], ends[: len(pairs)] = texts.tokens[chosen], texts.lengths[chosen]
    offsets = np.arange(targets.shape[1], dtype=np.int32)[None]
    return {
        "tokens": tokens,
        "segments": (np.arange(length)[None] < lengths[:, None]).astype(np.int32),
        "positions": np.clip((lengths - ends)[:, None] - 1 + offsets, 0, length - 1),
        "targets": targets,
        "weights": (offsets < ends[:, None]).astype(np.int32),
    }
