"""Packing of stored documents into rows, in a given order."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from jaxtempl.data.dataset import PackedRow
from jaxtempl.data.packing import Packer
from jaxtempl.prepare.spool import DocumentStore

DOCUMENTS = 1024  # read and packed at a time


def pack(store: DocumentStore, order: Int64[np.ndarray, " n"], packer: Packer, limit: float) -> Iterator[PackedRow]:
    """Yield the rows of the documents in `order`; stop after the block in which `limit` tokens are packed."""
    for tokens, lengths in store.batches(order, DOCUMENTS):
        if packer.tokens >= limit:
            break
        yield from packer.add(tokens, lengths)
    yield from packer.finish()
