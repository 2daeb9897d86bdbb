"""Packed rows of the labelled contexts themselves, for task-adaptive pre-training (Gururangan et al., 2020).

Each case comes once, up to its last labelled message, in the form that a classifier reads: contexts of one case begin
alike, and its earlier ones are in the last.
"""

from collections.abc import Iterator

import numpy as np

from jaxtempl.data.dataset import Dataset, PackedRow
from jaxtempl.data.packing import Packer
from jaxtempl.errors import UserError
from jaxtempl.text import formats, window
from jaxtempl.text.tokenizer import Tokenizer


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
    documents = list(_documents(dataset, tokenizer, split, length))
    if not documents:
        if split == "train":
            raise UserError(f"{dataset.folder} has no labelled training contexts, which --task_adaptive reads")
        return []
    packer, lengths = Packer(length), np.array([len(ids) for ids in documents], np.int64)
    return [*packer.add(np.array([i for ids in documents for i in ids], np.uint16), lengths), *packer.finish()]


def _documents(dataset: Dataset, tokenizer: Tokenizer, split: str, length: int) -> Iterator[list[int]]:
    labels, cases = dataset.labels(split), dataset.cases(split)
    for case in np.unique(labels.case):
        last = int(labels.message[labels.case == case].max())
        pieces = tokenizer.encode(formats.pieces(cases[int(case)].messages[:last]))
        ids = window.window(pieces, length - 1 - tokenizer.overhead)
        if ids:
            yield [*ids, tokenizer.end_of_text]
