"""Packing: documents joined with an end-of-text token after each, and cut into rows of `length` tokens."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt16

from jaxtempl.data.dataset import PackedRow


class Packer:
    """Packs documents into whole rows; tokens that do not fill a row wait for the next documents.

    Segments number a row's documents 1, 2, ... from its start; 0 is padding.

    Attributes:
        tokens: number of tokens packed so far, end-of-text included.
        documents: number of documents packed so far.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._pending = np.empty(0, np.uint16)
        self._pending_numbers = np.empty(0, np.int64)
        self.tokens = self.documents = 0

    def add(
        self, tokens: UInt16[np.ndarray, " tokens"], lengths: Int64[np.ndarray, " documents"]
    ) -> Iterator[PackedRow]:
        """Yield the rows that these documents complete.

        Args:
            tokens: tokens of all documents, joined.
            lengths: tokens of each document.
        """
        numbers = np.repeat(np.arange(self.documents, self.documents + len(lengths)), lengths)
        self.documents += len(lengths)
        self.tokens += len(tokens)
        tokens = np.concatenate([self._pending, tokens])
        numbers = np.concatenate([self._pending_numbers, numbers])
        whole = len(tokens) // self._length * self._length
        self._pending, self._pending_numbers = tokens[whole:], numbers[whole:]
        yield from self._rows(tokens[:whole], numbers[:whole])

    def finish(self) -> Iterator[PackedRow]:
        """Yield the last, incomplete row, padded with id 0 and segment 0, if there is one."""
        missing = self._length - len(self._pending)
        if missing == self._length:
            return
        row = next(self._rows(np.pad(self._pending, (0, missing)), np.pad(self._pending_numbers, (0, missing))))
        row["segments"][-missing:] = 0
        yield row

    def _rows(self, tokens: UInt16[np.ndarray, " n"], numbers: Int64[np.ndarray, " n"]) -> Iterator[PackedRow]:
        by_row = numbers.reshape(-1, self._length)
        segments = (by_row - by_row[:, :1] + 1).astype(np.uint16)
        for row, segment in zip(tokens.reshape(-1, self._length), segments, strict=True):
            yield {"tokens": row, "segments": segment}
