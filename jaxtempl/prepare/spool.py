"""Working files of one run: what is gathered while reading and needed again while writing, kept off the heap."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64, Shaped, UInt16

BUFFER = 1 << 20  # bytes gathered before a write


class SpoolFolder:
    """A temporary folder of working files, closed and removed when its block ends.

    Attributes:
        folder: where they lie.
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
        """A new column."""
        return Column(self._open(name), dtype)

    def documents(self, name: str) -> "DocumentStore":
        """A new store of token lists."""
        return DocumentStore(self.column(f"{name}.tokens", "<u2"), self.column(f"{name}.lengths", "<i8"))

    def _open(self, name: str) -> BinaryIO:
        return self._stack.enter_context((self.folder / name).open("w+b", buffering=BUFFER))


class Column:
    """Items of one numpy dtype, appended one by one or as raw bytes, read back as an array or in blocks."""

    def __init__(self, file: BinaryIO, dtype: str) -> None:
        self._file, self._dtype = file, np.dtype(dtype)
        self._bytes = 0

    def __len__(self) -> int:
        return self._bytes // self._dtype.itemsize

    def append(self, raw: bytes) -> None:
        """Appends whole items given as their bytes."""
        self._file.write(raw)
        self._bytes += len(raw)

    def flush(self) -> None:
        """Brings what was appended to where `part` reads."""
        self._file.flush()

    def read(self) -> Shaped[np.ndarray, " items"]:
        """All items, in memory."""
        self._file.flush()
        return np.fromfile(self._file.name, self._dtype)

    def part(self, start: int, stop: int) -> bytes:
        """The bytes of some items."""
        size = self._dtype.itemsize
        return os.pread(self._file.fileno(), (stop - start) * size, start * size)

    def blocks(self, items: int) -> Iterator[Shaped[np.ndarray, " items"]]:
        """At most `items` at a time."""
        self._file.flush()
        with Path(self._file.name).open("rb") as file:
            while len(block := np.fromfile(file, self._dtype, items)):
                yield block


class DocumentStore:
    """Token lists appended in order and read back in any order, at 8 bytes of memory each while they are read.

    The file is read by position, not mapped, so that the pages read do not count as this process's memory.
    """

    def __init__(self, tokens: Column, lengths: Column) -> None:
        self._tokens, self._lengths = tokens, lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def append(self, tokens: UInt16[np.ndarray, " tokens"], lengths: Int64[np.ndarray, " documents"]) -> None:
        """Appends documents given one after another."""
        self._tokens.append(tokens.tobytes())
        self._lengths.append(lengths.tobytes())

    def batches(
        self, order: Int64[np.ndarray, " n"], size: int
    ) -> Iterator[tuple[UInt16[np.ndarray, " tokens"], Int64[np.ndarray, " documents"]]]:
        """The documents in `order`, `size` at a time: their tokens one after another, and their lengths."""
        self._tokens.flush()
        ends = np.cumsum(self._lengths.read())
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            starts = np.where(chosen > 0, ends[chosen - 1], 0)
            spans = zip(starts.tolist(), ends[chosen].tolist(), strict=True)
            raw = b"".join(self._tokens.part(a, b) for a, b in spans)
            yield np.frombuffer(raw, np.uint16), ends[chosen] - starts
