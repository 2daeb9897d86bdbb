"""Contexts of a dataset, encoded as a run reads them, to verify what was converted from the run."""

from collections.abc import Iterator

from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.data.sampling import nested_subset
from jaxtempl.text import formats
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window

SPLITS = ("test", "validation", "train")  # cases that the run did not train on come first


def labelled_windows(dataset: Dataset, window: Window) -> Iterator[list[int]]:
    """Yield the ids of labelled contexts, held-out cases first, in a fixed random order."""
    for split in SPLITS:
        contexts = LabelledContexts.read(dataset, split, window).sample(None, 0).with_text()
        yield from (contexts[i].tokens for i in range(len(contexts)))


def documents(dataset: Dataset, tokenizer: Tokenizer, limit: int) -> Iterator[list[int]]:
    """Yield whole cases as a language model reads them, cut after `limit` tokens, in a fixed random order."""
    for split in SPLITS:
        cases = dataset.cases(split)
        for index in nested_subset(len(cases), None, 0):
            ids = tokenizer.encode([formats.document(cases[int(index)].messages)])[0]
            yield [*tokenizer.begin, *ids[: limit - tokenizer.overhead], *tokenizer.end]
