"""The alignment of a corpus with the task: the share of the task's word n-grams in the corpus.

Issue 6; arXiv 2402.04177. The n-grams are word 3-grams of the task's test cases. The corpus is a sample of its training
rows, weighted as in the mixture and of a fixed size, so a larger corpus does not score higher because it is larger.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxtempl import files
from jaxtempl.config import mixture, sizes
from jaxtempl.config.scaling import ScalingAlignConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.sampling import nested_subset
from jaxtempl.errors import UserError
from jaxtempl.text.pretrained import read_tokenizer
from jaxtempl.text.tokenizer import Tokenizer

NGRAM_WORDS = 3
SAMPLE_TOKENS = 1_000_000  # of a corpus
SAMPLE_CASES = 1_000  # of the task

NGram = tuple[str, ...]


class Alignment(NamedTuple):
    """The alignment of a corpus.

    Attributes:
        score: Share of the task's n-grams in the corpus's sample.
        task_ngrams: Number of the task's n-grams, repetitions included.
        corpus_ngrams: Number of distinct n-grams of the corpus's sample.
    """

    score: float
    task_ngrams: int
    corpus_ngrams: int


def measure(config: ScalingAlignConfig) -> Alignment:
    """Measure the alignment of a corpus, and write it to `config.out`.

    Raises:
        UserError: The task has no test cases.
    """
    tokenizer = read_tokenizer(Path(config.tokenizer) if config.tokenizer else sizes.tokenizer_path(config.size))
    weighted = [(Dataset(folder), weight or 1.0) for folder, weight in mixture.parse_mixture(config.data)]
    total = sum(weight for _, weight in weighted)
    corpus = {ngram for dataset, weight in weighted for ngram in _sample(dataset, tokenizer, weight / total)}
    task = [ngram for text in _messages(Dataset(config.task)) for ngram in ngrams(text)]
    if not task:
        raise UserError(f"{config.task} has no test cases to compare with; name the task's dataset with --task")
    alignment = Alignment(float(np.mean([ngram in corpus for ngram in task])), len(task), len(corpus))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"alignment": alignment.score, "grams": alignment.task_ngrams, "corpus": alignment.corpus_ngrams}
    files.write_json(config.out, {"kind": "alignment", **report})
    return alignment


def ngrams(text: str) -> Iterator[NGram]:
    """Return the n-grams of a text, without case and punctuation."""
    words = re.findall(r"\w+", text.casefold())
    return zip(*(words[i:] for i in range(NGRAM_WORDS)), strict=False)


def _messages(task: Dataset) -> Iterator[str]:
    """Yield the messages of a sample of the task's test cases."""
    cases = task.cases("test")
    for index in nested_subset(len(cases), SAMPLE_CASES, 0):
        yield from (message.text for message in cases[int(index)].messages)


def _sample(dataset: Dataset, tokenizer: Tokenizer, share: float) -> Iterator[NGram]:
    """Yield the n-grams of a share of the sample: the first training rows, which are in random order."""
    rows, length = dataset.rows(tokenizer, "train"), dataset.manifest["length"]
    for row in rows[: max(1, round(share * SAMPLE_TOKENS / length))]:
        for document in np.unique(row["segments"][row["segments"] > 0]):
            yield from ngrams(tokenizer.decode(row["tokens"][row["segments"] == document].tolist()))
