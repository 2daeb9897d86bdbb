"""Temporary files for data that is collected while reading and needed again while writing, to keep it off the heap."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64, Shaped, UInt16

BUFFER = 1 << 20  # bytes buffered before a write


class SpoolFolder:
    """A temporary folder of spool files, closed and removed when its block ends.

    Attributes:
        folder: the folder.
    """

    def __init__(self, parent: Path) -> None:
        self._stack = contextlib.ExitStack()
        folder = tempfile.TemporaryDirectory(prefix="work.", dir=parent)
        self.folder = Path(self._stack.enter_context(folder))

    def __enter__(self) -> "SpoolFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def column(self, name: str, dtype: str) -> "Column":
        """Open a new column."""
        return Column(self._open(name), dtype)

    def documents(self, name: str) -> "DocumentStore":
        """Open a new store of token lists."""
        return DocumentStore(self.column(f"{name}.tokens", "<u2"), self.column(f"{name}.lengths", "<i8"))

    def _open(self, name: str) -> BinaryIO:
        return self._stack.enter_context((self.folder / name).open("w+b", buffering=BUFFER))


class Column:
    """A file of items of one numpy dtype, appended as bytes and read as an array or in blocks."""

    def __init__(self, file: BinaryIO, dtype: str) -> None:
        self._file, self._dtype = file, np.dtype(dtype)
        self._bytes = 0

    def __len__(self) -> int:
        return self._bytes // self._dtype.itemsize

    def append(self, raw: bytes) -> None:
        """Append whole items, given as bytes."""
        self._file.write(raw)
        self._bytes += len(raw)

    def flush(self) -> None:
        """Write buffered items to the file, so that `part` can read them."""
        self._file.flush()

    def read(self) -> Shaped[np.ndarray, " items"]:
        """Return all items, in memory."""
        self._file.flush()
        return np.fromfile(self._file.name, self._dtype)

    def part(self, start: int, stop: int) -> bytes:
        """Return the bytes of a range of items."""
        size = self._dtype.itemsize
        return os.pread(self._file.fileno(), (stop - start) * size, start * size)

    def blocks(self, items: int) -> Iterator[Shaped[np.ndarray, " items"]]:
        """Yield blocks of at most `items` items."""
        self._file.flush()
        with Path(self._file.name).open("rb") as file:
            while len(block := np.fromfile(file, self._dtype, items)):
                yield block


class DocumentStore:
    """A file of token lists, appended in order and read in any order with 8 bytes of memory for each.

    The file is read by position and not mapped, so that its pages do not count as memory of the process.
    """

    def __init__(self, tokens: Column, lengths: Column) -> None:
        self._tokens, self._lengths = tokens, lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def append(self, tokens: UInt16[np.ndarray, " tokens"], lengths: Int64[np.ndarray, " documents"]) -> None:
        """Append documents, given one after another."""
        self._tokens.append(tokens.tobytes())
        self._lengths.append(lengths.tobytes())

    def batches(
        self, order: Int64[np.ndarray, " n"], size: int
    ) -> Iterator[tuple[UInt16[np.ndarray, " tokens"], Int64[np.ndarray, " documents"]]]:
        """Yield the documents in `order`, `size` at a time: their tokens one after another, and their lengths."""
        self._tokens.flush()
        ends = np.cumsum(self._lengths.read())
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            starts = np.where(chosen > 0, ends[chosen - 1], 0)
            spans = zip(starts.tolist(), ends[chosen].tolist(), strict=True)
            raw = b"".join(self._tokens.part(a, b) for a, b in spans)
            yield np.frombuffer(raw, np.uint16), ends[chosen] - starts
