"""Packed rows: documents one after another, one end-of-text after each, cut every `length` tokens."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt16

Row = dict[str, UInt16[np.ndarray, " length"]]


class Packer:
    """Turns documents into whole rows; what is left over waits for the next ones.

    Segments number a row's documents 1, 2, ... from its start; 0 is padding.

    Attributes:
        tokens: tokens taken so far, end-of-text included.
        documents: documents taken so far.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._rest = np.empty(0, np.uint16)
        self._rest_numbers = np.empty(0, np.int64)
        self.tokens = self.documents = 0

    def add(self, tokens: UInt16[np.ndarray, " tokens"], lengths: Int64[np.ndarray, " documents"]) -> Iterator[Row]:
        """The rows that these documents, given one after another, complete."""
        numbers = np.repeat(np.arange(self.documents, self.documents + len(lengths)), lengths)
        self.documents += len(lengths)
        self.tokens += len(tokens)
        tokens = np.concatenate([self._rest, tokens])
        numbers = np.concatenate([self._rest_numbers, numbers])
        whole = len(tokens) // self._length * self._length
        self._rest, self._rest_numbers = tokens[whole:], numbers[whole:]
        yield from self._rows(tokens[:whole], numbers[:whole])

    def finish(self) -> Iterator[Row]:
        """The last row, padded with id 0 and segment 0, if a part of one is left."""
        missing = self._length - len(self._rest)
        if missing == self._length:
            return
        row = next(self._rows(np.pad(self._rest, (0, missing)), np.pad(self._rest_numbers, (0, missing))))
        row["segments"][-missing:] = 0
        yield row

    def _rows(self, tokens: UInt16[np.ndarray, " n"], numbers: Int64[np.ndarray, " n"]) -> Iterator[Row]:
        by_row = numbers.reshape(-1, self._length)
        segments = (by_row - by_row[:, :1] + 1).astype(np.uint16)
        for row, segment in zip(tokens.reshape(-1, self._length), segments, strict=True):
            yield {"tokens": row, "segments": segment}
