"""The contexts of a dataset, as a run reads them, for holding what was made of the run to it."""

from collections.abc import Iterator

import numpy as np

from jaxtempl.data.contexts import Contexts
from jaxtempl.data.dataset import Dataset
from jaxtempl.text import formats
from jaxtempl.text.tokenizer import Tokenizer

SPLITS = ("test", "validation", "train")  # unseen ones first


def labelled(dataset: Dataset, tokenizer: Tokenizer, window: int, role_tags: bool) -> Iterator[list[int]]:
    """The windows of labelled contexts, those of unseen cases first, in a random order that is always the same."""
    for split in SPLITS:
        contexts = Contexts(dataset, split, tokenizer, window, role_tags)
        for index in np.random.default_rng(0).permutation(len(contexts)):
            yield contexts[int(index)].tokens


def documents(dataset: Dataset, tokenizer: Tokenizer, window: int) -> Iterator[list[int]]:
    """Whole cases as a language model reads them, cut at the window."""
    for split in SPLITS:
        cases = dataset.cases(split)
        for index in np.random.default_rng(0).permutation(len(cases)):
            ids = tokenizer.encode([formats.document(cases[int(index)].messages)])[0]
            yield [*tokenizer.begin, *ids[: window - tokenizer.overhead], *tokenizer.end]
