"""`bin/scaling filter`: domain-like text out of a general corpus (issue 6; arXiv 2501.02068 filters the web so).

A linear classifier of hashed word 1- and 2-grams learns to tell the domain's cases from a sample of the corpus, then
scores every passage; those of the highest scores are kept, in their order. Roles are left out, so that what is told
apart is how people write and of what.
"""

import gzip
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from tqdm import tqdm

from jaxtempl import files
from jaxtempl.config import parsing
from jaxtempl.config.scaling import ScalingFilterConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.sampling import nested_subset
from jaxtempl.errors import UsageError, UserError
from jaxtempl.text.ingest import CaseReader, Quarantine
from jaxtempl.text.records import RecordFile, find_files

SAMPLE = 20_000  # passages of each side that the classifier sees
FEATURES = 2**18
BATCH = 1_000  # passages scored at a time


def main(argv: Sequence[str]) -> None:
    """`bin/scaling filter`."""
    asked = parsing.parse(ScalingFilterConfig, argv)
    _check(asked)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(asked, [source for path in asked.documents for source in find_files(path)])
    scores = _scores(_classifier(asked, corpus), corpus)
    least = np.quantile(scores, 1 - asked.keep)
    with files.atomic_file(asked.out) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
        kept = [len(text) for text in _written(file, corpus, scores, float(least))]
    print(f"{asked.out}: {len(kept):,} of {len(scores):,} passages, {sum(kept):,} characters")


def _check(asked: ScalingFilterConfig) -> None:
    if not asked.documents:
        raise UsageError("where is the text? name it with --documents=PATH")
    if not 0 < asked.keep < 1:
        raise UsageError(f"--keep={asked.keep:g} is a share between 0 and 1")
    if asked.out.exists() and not asked.overwrite:
        raise UserError(f"{asked.out} exists; choose another --out or pass --overwrite=true")


class Corpus:
    """The passages of files, read as often as it is gone through.

    Args:
        asked: how long a passage is, and how many records may be bad.
        found: files.
    """

    def __init__(self, asked: ScalingFilterConfig, found: Sequence[RecordFile]) -> None:
        self._asked, self._files = asked, found

    def passages(self, what: str) -> Iterator[str]:
        """Shows how far it is.

        Raises:
            UserError: too many records are bad.
        """
        listed = self._asked.out.with_name(f"{self._asked.out.name}.quarantine.jsonl")
        listed.unlink(missing_ok=True)  # of the pass before
        quarantine = Quarantine(listed)
        total = sum(source.size for source in self._files)
        with tqdm(total=total, desc=what, unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar:
            for document in CaseReader(quarantine, "template", bar.update).documents(self._files):
                yield from passages(document, self._asked.passage)
        quarantine.check(self._asked.max_bad, listed)
        if not quarantine.reasons:
            listed.unlink()


def passages(text: str, length: int) -> Iterator[str]:
    """Whole paragraphs, together at least `length` characters long where the text goes on."""
    held: list[str] = []
    for paragraph in text.split("\n"):
        held.append(paragraph)
        if sum(map(len, held)) >= length:
            yield "\n".join(held).strip()
            held = []
    rest = "\n".join(held).strip()
    if rest:
        yield rest


def _classifier(asked: ScalingFilterConfig, corpus: Corpus) -> Any:
    own = list(itertools.islice(_said(asked), SAMPLE))
    if not own:
        raise UserError(f"{asked.like} has no training cases to be like")
    other = _sampled(corpus.passages("sampling"), min(SAMPLE, 10 * len(own)), asked.seed)
    if not other:
        raise UserError(f"--documents={','.join(asked.documents)} has no text")
    words = HashingVectorizer(ngram_range=(1, 2), n_features=FEATURES, alternate_sign=False)
    linear = SGDClassifier(loss="log_loss", class_weight="balanced", random_state=asked.seed)
    return make_pipeline(words, linear).fit(own + other, [1] * len(own) + [0] * len(other))


def _said(asked: ScalingFilterConfig) -> Iterator[str]:
    """What was said in the domain's training cases, each a passage or more, in a random order."""
    cases = Dataset(asked.like).cases("train")
    for index in nested_subset(len(cases), None, asked.seed):
        yield from passages("\n".join(message.text for message in cases[int(index)].messages), asked.passage)


def _sampled(texts: Iterator[str], count: int, seed: int) -> list[str]:
    """Equally likely ones of a stream (reservoir sampling)."""
    random, kept = np.random.default_rng(seed), list[str]()
    for i, text in enumerate(texts):
        if len(kept) < count:
            kept.append(text)
        elif (place := int(random.integers(i + 1))) < count:
            kept[place] = text
    return kept


def _scores(classifier: Any, corpus: Corpus) -> Float32[np.ndarray, " passages"]:
    texts = corpus.passages("scoring")
    batches = iter(lambda: list(itertools.islice(texts, BATCH)), [])
    return np.concatenate([classifier.decision_function(batch).astype(np.float32) for batch in batches])


def _written(file: Any, corpus: Corpus, scores: Float32[np.ndarray, " passages"], least: float) -> Iterator[str]:
    """Writes the passages that are kept, and yields them."""
    for i, (text, score) in enumerate(zip(corpus.passages("writing"), scores.tolist(), strict=True)):
        if score >= least:
            record = {"id": f"passage-{i}", "text": text, "score": round(score, 4)}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            yield text
