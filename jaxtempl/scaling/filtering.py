"""Filters domain-like passages out of a general corpus (issue 6; arXiv 2501.02068 filters the web this way).

A linear classifier on hashed word 1- and 2-grams learns to separate the domain's cases from a sample of the corpus. It
scores every passage, and the passages with the highest scores are kept in their order. Roles are left out, so the
classifier separates style and topic.
"""

import gzip
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from tqdm import tqdm

from jaxtempl import files
from jaxtempl.config.scaling import ScalingFilterConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.sampling import nested_subset
from jaxtempl.errors import UsageError, UserError
from jaxtempl.text.ingest import CaseReader, Quarantine
from jaxtempl.text.sources import RecordFile, find_files

SAMPLE_PASSAGES = 20_000  # of each class that the classifier sees
HASHED_FEATURES = 2**18
BATCH_PASSAGES = 1_000  # scored at a time

PassageScores = Float32[np.ndarray, " passages"]


class FilterCounts(NamedTuple):
    """Counts of a filtered corpus.

    Attributes:
        kept: Passages kept.
        total: Passages read.
        characters: Characters kept.
    """

    kept: int
    total: int
    characters: int


def filter_corpus(config: ScalingFilterConfig) -> FilterCounts:
    """Write the most domain-like passages of a corpus to `config.out`.

    Raises:
        UsageError: A flag is missing or out of range.
        UserError: `config.out` exists, a corpus is empty, or too many records are bad.
    """
    _check(config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    corpus = PassageCorpus(config, [source for path in config.documents for source in find_files(path)])
    scores = _score(_train_classifier(config, corpus), corpus)
    threshold = float(np.quantile(scores, 1 - config.keep))
    with files.atomic_file(config.out) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
        lengths = [len(text) for text in _write(file, corpus, scores, threshold)]
    return FilterCounts(len(lengths), len(scores), sum(lengths))


def _check(config: ScalingFilterConfig) -> None:
    if not config.documents:
        raise UsageError("no text is named; name it with --documents=PATH")
    if not 0 < config.keep < 1:
        raise UsageError(f"--keep={config.keep:g} is not a share between 0 and 1; pass one such as --keep=0.1")
    if config.out.exists() and not config.overwrite:
        raise UserError(f"{config.out} exists; choose another --out or pass --overwrite=true")


class PassageCorpus:
    """The passages of files, which are read again in every pass.

    Args:
        config: Length of a passage, and share of records that may be bad.
        sources: Files.
    """

    def __init__(self, config: ScalingFilterConfig, sources: Sequence[RecordFile]) -> None:
        self._config, self._sources = config, sources

    def passages(self, description: str) -> Iterator[str]:
        """Yield all passages and show the progress.

        Raises:
            UserError: Too many records are bad.
        """
        listed = self._config.out.with_name(f"{self._config.out.name}.quarantine.jsonl")
        listed.unlink(missing_ok=True)  # written by the previous pass
        quarantine = Quarantine(listed)
        total = sum(source.size for source in self._sources)
        with tqdm(total=total, desc=description, unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar:
            for document in CaseReader(quarantine, "template", bar.update).documents(self._sources):
                yield from split_passages(document, self._config.passage)
        quarantine.check(self._config.max_bad, listed)
        if not quarantine.reasons:
            listed.unlink()


def split_passages(text: str, length: int) -> Iterator[str]:
    """Split a text into passages of whole paragraphs, each at least `length` characters long except the last."""
    paragraphs: list[str] = []
    for paragraph in text.split("\n"):
        paragraphs.append(paragraph)
        if sum(map(len, paragraphs)) >= length:
            yield "\n".join(paragraphs).strip()
            paragraphs = []
    rest = "\n".join(paragraphs).strip()
    if rest:
        yield rest


def _train_classifier(config: ScalingFilterConfig, corpus: PassageCorpus) -> Any:
    domain = list(itertools.islice(_domain_passages(config), SAMPLE_PASSAGES))
    if not domain:
        raise UserError(f"{config.like} has no training cases; name a dataset that has some with --like")
    other = _reservoir(corpus.passages("sampling"), min(SAMPLE_PASSAGES, 10 * len(domain)), config.seed)
    if not other:
        raise UserError(f"--documents={','.join(config.documents)} has no text; name files that have some")
    words = HashingVectorizer(ngram_range=(1, 2), n_features=HASHED_FEATURES, alternate_sign=False)
    linear = SGDClassifier(loss="log_loss", class_weight="balanced", random_state=config.seed)
    return make_pipeline(words, linear).fit(domain + other, [1] * len(domain) + [0] * len(other))


def _domain_passages(config: ScalingFilterConfig) -> Iterator[str]:
    """Yield passages of the domain's training cases, in random order."""
    cases = Dataset(config.like).cases("train")
    for index in nested_subset(len(cases), None, config.seed):
        text = "\n".join(message.text for message in cases[int(index)].messages)
        yield from split_passages(text, config.passage)


def _reservoir(texts: Iterator[str], count: int, seed: int) -> list[str]:
    """Return a uniform sample of a stream (reservoir sampling)."""
    random, sample = np.random.default_rng(seed), list[str]()
    for i, text in enumerate(texts):
        if len(sample) < count:
            sample.append(text)
        elif (position := int(random.integers(i + 1))) < count:
            sample[position] = text
    return sample


def _score(classifier: Any, corpus: PassageCorpus) -> PassageScores:
    texts = corpus.passages("scoring")
    batches = iter(lambda: list(itertools.islice(texts, BATCH_PASSAGES)), [])
    return np.concatenate([classifier.decision_function(batch).astype(np.float32) for batch in batches])


def _write(file: Any, corpus: PassageCorpus, scores: PassageScores, threshold: float) -> Iterator[str]:
    """Write the passages at or above the threshold, and yield them."""
    for i, (text, score) in enumerate(zip(corpus.passages("writing"), scores.tolist(), strict=True)):
        if score >= threshold:
            record = {"id": f"passage-{i}", "text": text, "score": round(score, 4)}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            yield text
