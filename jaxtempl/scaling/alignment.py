"""How near a corpus is to the task: the share of the task's word n-grams that it has (issue 6; arXiv 2402.04177).

The n-grams are of three words, of held-out cases of the task; the corpus is a sample of its training rows, as many of
each dataset as its share says, always of one size, so that a larger corpus is not nearer because it is larger.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxtempl import files
from jaxtempl.config import mixture, parsing, sizes
from jaxtempl.config.scaling import ScalingAlignConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.sampling import nested_subset
from jaxtempl.errors import UserError
from jaxtempl.text.pretrained import read_tokenizer
from jaxtempl.text.tokenizer import Tokenizer

WORDS = 3  # of an n-gram
SAMPLE = 1_000_000  # tokens of a corpus
CASES = 1_000  # of the task

Gram = tuple[str, ...]


def main(argv: Sequence[str]) -> None:
    """`bin/scaling align`."""
    asked = parsing.parse(ScalingAlignConfig, argv)
    tokenizer = read_tokenizer(Path(asked.tokenizer) if asked.tokenizer else sizes.tokenizer_path(asked.size))
    parts = [(Dataset(folder), weight) for folder, weight in mixture.parse_mixture(asked.data)]
    total = sum(weight or 1.0 for _, weight in parts)
    corpus = {gram for dataset, weight in parts for gram in _sampled(dataset, tokenizer, (weight or 1.0) / total)}
    task = [gram for said in _said(Dataset(asked.task)) for gram in grams(said)]
    if not task:
        raise UserError(f"{asked.task} has no test cases to compare with; name the task's dataset with --task")
    score = float(np.mean([gram in corpus for gram in task]))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(asked.out, {"kind": "alignment", "alignment": score, "grams": len(task), "corpus": len(corpus)})
    print(f"{score:.1%} of {len(task):,} n-grams of {asked.task} are in the sample of {asked.data}")


def grams(text: str) -> Iterator[Gram]:
    """The n-grams of a text, without case and punctuation."""
    words = re.findall(r"\w+", text.casefold())
    return zip(*(words[i:] for i in range(WORDS)), strict=False)


def _said(task: Dataset) -> Iterator[str]:
    """The messages of some of the task's test cases."""
    cases = task.cases("test")
    for index in nested_subset(len(cases), CASES, 0):
        yield from (message.text for message in cases[int(index)].messages)


def _sampled(dataset: Dataset, tokenizer: Tokenizer, share: float) -> Iterator[Gram]:
    """N-grams of a share of the sample: the first training rows, which are in a random order, over again if need be."""
    rows, length = dataset.rows(tokenizer, "train"), dataset.manifest["length"]
    for row in rows[: max(1, round(share * SAMPLE / length))]:
        for document in np.unique(row["segments"][row["segments"] > 0]):
            yield from grams(tokenizer.decode(row["tokens"][row["segments"] == document].tolist()))
