"""Task-adaptive pre-training (Gururangan et al., 2020): packed rows of the labelled contexts.

A case's contexts are prefixes of one another, so each case is read once: its longest labelled context, in the form that
a classifier reads.
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
    """Return the packed rows of a split's labelled contexts, in memory.

    Args:
        dataset: dataset with labels.
        tokenizer: the model's tokenizer.
        split: split of the dataset.
        length: tokens of a row.

    Raises:
        UserError: the training split has no labels.
    """
    # One token is left for end-of-text.
    contexts = LabelledContexts.read(dataset, split, Window(tokenizer, length - 1))
    documents = list(_documents(contexts, tokenizer.end_of_text))
    if not documents:
        if split == "train":
            raise UserError(f"{dataset.folder} has no labelled training contexts; leave --task_adaptive out")
        return []
    packer, lengths = Packer(length), np.array([len(ids) for ids in documents], np.int64)
    return [*packer.add(np.array([i for ids in documents for i in ids], np.uint16), lengths), *packer.finish()]


def _documents(contexts: LabelledContexts, end_of_text: int) -> Iterator[list[int]]:
    order = np.lexsort((contexts.message, contexts.case))
    is_last = np.diff(contexts.case[order], append=-1) != 0
    for index in order[is_last].tolist():
        ids = [token for message in contexts.window.newest(contexts.messages(index)) for token in message]
        if ids:
            yield [*ids, end_of_text]
