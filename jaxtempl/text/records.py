"""Stream numbered records from JSON Lines (plain or compressed) and Parquet files, from any fsspec URL.

Reading continues after a bad record: a RecordError is yielded instead of it.
"""

import dataclasses
import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import urlsplit

from jaxtempl.errors import UserError
from jaxtempl.text.cases import RecordError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
LINE_LIMIT = 50_000_000  # bytes of one record; a longer line is skipped without being held whole
BLOCK = 1 << 20  # bytes read at a time
STEP = 1 << 10  # compressed bytes at a time: zstd makes at most 128 KiB of 4 bytes, so 32 MiB of these


@dataclasses.dataclass
class RecordFile:
    """One input file, with the sha256 of the bytes read so far.

    Attributes:
        name: path or URL, without user, password and query.
        size: stored size in bytes.
        system: fsspec file system.
        path: path in the file system.
        hash: sha256 of the bytes read.
    """

    name: str
    size: int
    system: Any
    path: str
    hash: Any = dataclasses.field(default_factory=hashlib.sha256)

    def facts(self) -> dict[str, Any]:
        """Return the manifest entry of the file, once all of it is read."""
        return {"name": self.name, "bytes": self.size, "sha256": self.hash.hexdigest()}


class _Hashing(io.RawIOBase):
    """A readable view of an fsspec file that hashes and counts the bytes read."""

    def __init__(self, inner: Any, source: RecordFile, progress: Callable[[int], object]) -> None:
        self._inner, self._source, self._progress = inner, source, progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        self._source.hash.update(data)
        self._progress(len(data))
        return len(data)


class _Decompressing(io.RawIOBase):
    """The decompressed bytes of gzip members or zstd frames.

    If an archive is truncated, every byte before the break is returned, then BrokenArchiveError is raised. The standard
    readers either lose buffered bytes or do not report the truncation.
    """

    def __init__(self, inner: io.BufferedReader, frame: Callable[[], Any]) -> None:
        self._inner, self._new_frame = inner, frame
        self._frame: Any = None
        self._compressed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain and self._fill():
            pass
        size = min(len(buffer), len(self._plain))
        buffer[:size], self._plain = self._plain[:size], self._plain[size:]
        return size

    def _fill(self) -> bool:
        """Decompress one step; return False at the end."""
        self._compressed = self._compressed or self._inner.read(STEP)
        if self._frame is None:
            self._compressed = self._compressed.lstrip(b"\0")  # padding between and after gzip members
        if not self._compressed:
            if self._frame is not None:
                raise BrokenArchiveError("it ends early")
            return False
        self._frame = self._frame or self._new_frame()
        try:
            self._plain = memoryview(self._frame.decompress(self._compressed))
        except Exception as error:  # zlib's and zstandard's own errors have no common class
            raise BrokenArchiveError(str(error)) from None
        self._compressed = self._frame.unused_data if self._frame.eof else b""
        self._frame = None if self._frame.eof else self._frame
        return True


class BrokenArchiveError(Exception):
    """An archive is truncated or corrupt."""


def _buffered(raw: io.RawIOBase) -> io.BufferedReader:
    return io.BufferedReader(cast(Any, raw), BLOCK)


def _plain(name: str, raw: io.BufferedReader) -> io.BufferedReader:
    """Return the decompressed bytes of an open file, by its suffix."""
    if name.endswith(".gz"):
        return _buffered(_Decompressing(raw, lambda: zlib.decompressobj(wbits=31)))
    if name.endswith(".zst"):
        import zstandard

        return _buffered(_Decompressing(raw, zstandard.ZstdDecompressor().decompressobj))
    return raw


# Line number from 1, and the bytes of the line, the row of a Parquet file, or a RecordError.
NumberedRecords = Iterator[tuple[int, object]]


def _lines(stream: io.BufferedReader) -> NumberedRecords:
    """Yield numbered lines as bytes; a line over the limit gives a RecordError, and its rest is skipped by blocks."""
    number = 0
    try:
        while line := stream.readline(LINE_LIMIT + 1):
            number += 1
            if len(line) <= LINE_LIMIT or line.endswith(b"\n"):
                yield number, line
                continue
            while (rest := stream.readline(BLOCK)) and not rest.endswith(b"\n"):
                pass
            yield number, RecordError("line too long", f"more than {LINE_LIMIT} bytes")
    except BrokenArchiveError as error:
        yield number + 1, RecordError("truncated archive", str(error))


def _json_lines(stream: io.BufferedReader) -> NumberedRecords:
    for number, line in _lines(stream):
        if isinstance(line, bytes):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # a byte order mark
            if line.strip():
                yield number, line
        else:
            yield number, line


def _parquet(stream: Any) -> NumberedRecords:
    """Yield the rows of a Parquet file, numbered from 1; a corrupt file gives one RecordError."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(stream) as file:
            for batch in file.iter_batches(batch_size=256):
                for i in range(batch.num_rows):
                    number += 1
                    yield number, _row(batch.slice(i, 1))
    except (pyarrow.ArrowException, OSError) as error:
        yield number + 1, RecordError("truncated archive", str(error)[:200])


def _row(batch: Any) -> object:
    if batch.nbytes > LINE_LIMIT:
        return RecordError("line too long", f"more than {LINE_LIMIT} bytes")
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return RecordError("invalid UTF-8", f"byte {error.start} of a string")
    except (ValueError, OverflowError) as error:  # dates that Python's cannot hold
        return RecordError("unreadable value", str(error)[:200])


def find_files(path: str) -> list[RecordFile]:
    """Return the files that `path` names: a file, folder, glob, or a file's name without its suffix; any fsspec URL.

    Raises:
        UserError: no file matches, or a file has another suffix.
    """
    import fsspec

    try:
        system, inner = fsspec.core.url_to_fs(path)
        sources = [
            RecordFile(_name(system, name), system.size(name) or 0, system, name) for name in _matches(system, inner)
        ]
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not sources:
        raise UserError(f"{path} names no file; a file, folder or glob of {', '.join(SUFFIXES)} is allowed")
    other = next((source.name for source in sources if not source.name.endswith(SUFFIXES)), None)
    if other is not None:
        raise UserError(f"{other} has none of the suffixes {', '.join(SUFFIXES)}; rename or convert it")
    return sources


def _name(system: Any, path: str) -> str:
    """Return a local file's path unchanged, or a URL without user, password and query."""
    from fsspec.implementations.local import LocalFileSystem

    if isinstance(system, LocalFileSystem):
        return path
    parts = urlsplit(system.unstrip_protocol(path))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _matches(system: Any, path: str) -> list[str]:
    if re.search(r"[*?\[]", path) and not system.exists(path):
        return sorted(name for name in system.glob(path) if name.endswith(SUFFIXES))
    if system.isdir(path):
        return sorted(name for name in system.find(path) if name.endswith(SUFFIXES))
    if system.exists(path):
        return [path]
    return [path + suffix for suffix in SUFFIXES if system.exists(path + suffix)]


def read_records(source: RecordFile, progress: Callable[[int], object] = lambda size: None) -> NumberedRecords:
    """Yield the numbered records of one file; a bad record gives a RecordError.

    Args:
        source: file from `find_files`; its hash is complete once the iterator is exhausted.
        progress: called with the number of stored bytes of each block read.
    """
    with source.system.open(source.path, "rb") as raw:
        hashing = _buffered(_Hashing(raw, source, progress))
        if source.name.endswith(".parquet"):  # read by seeking, so hashed in a separate pass
            _drain(hashing)
            yield from _parquet(raw)
            return
        plain = _plain(source.name, hashing)  # kept alive: its finalizer closes the streams below it
        yield from _json_lines(plain)
        _drain(hashing)  # the hash covers the whole file, also after an archive's end


def _drain(stream: io.BufferedReader) -> None:
    while stream.read(BLOCK):
        pass
