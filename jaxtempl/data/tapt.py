"""Packed rows of the labelled contexts themselves, for task-adaptive pre-training (Gururangan et al., 2020).

Each case comes once, up to its last labelled message, in the form that a classifier reads: contexts of one case begin
alike, and its earlier ones are in the last.
"""

from collections.abc import Iterator

import numpy as np

from jaxtempl.data.dataset import Dataset, PackedRow
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.data.packing import Packer
from jaxtempl.errors import UserError
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window


def task_adaptive_rows(dataset: Dataset, tokenizer: Tokenizer, split: str, length: int) -> list[PackedRow]:
    """The rows of a split, in memory.

    Args:
        dataset: with labels.
        tokenizer: the model's.
        split: side of the dataset.
        length: tokens of a row.

    Raises:
        UserError: the training side has no labels.
    """
    contexts = LabelledContexts.read(dataset, split, Window(tokenizer, length - 1))  # end-of-text takes one place
    documents = list(_documents(contexts, tokenizer.end_of_text))
    if not documents:
        if split == "train":
            raise UserError(f"{dataset.folder} has no labelled training contexts, which --task_adaptive reads")
        return []
    packer, lengths = Packer(length), np.array([len(ids) for ids in documents], np.int64)
    return [*packer.add(np.array([i for ids in documents for i in ids], np.uint16), lengths), *packer.finish()]


def _documents(contexts: LabelledContexts, end_of_text: int) -> Iterator[list[int]]:
    for case in np.unique(contexts.case):
        labels = np.flatnonzero(contexts.case == case)
        last = int(labels[contexts.message[labels].argmax()])
        ids = [token for message in contexts.window.newest(contexts.messages(last)) for token in message]
        if ids:
            yield [*ids, end_of_text]
