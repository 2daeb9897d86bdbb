"""Stream numbered records from JSON Lines (plain or compressed) and Parquet files, from any fsspec URL.

Reading continues after a bad record: a RecordError is yielded instead of it. A LostRecordsError is yielded where an
unknown number of records cannot be read.
"""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from typing import Any

from jaxtempl.errors import UserError, first_line
from jaxtempl.text.archives import BLOCK, BrokenArchiveError, buffered, decompressed
from jaxtempl.text.cases import LostRecordsError, RecordError
from jaxtempl.text.parquet_columns import Columns, choose_paths
from jaxtempl.text.sources import HashingReader, RecordFile

LINE_LIMIT = 50_000_000  # bytes of one record; a longer line is skipped without being held whole

# First bytes of files that are no JSON Lines: what the file is, and its right name or form.
_OTHER_KINDS = {
    b"\x1f\x8b": "gzip; rename it to end in .gz",
    b"\x28\xb5\x2f\xfd": "zstd; rename it to end in .zst",
    b"PAR1": "Parquet; rename it to end in .parquet",
    b"\xff\xfe": "UTF-16; convert it to UTF-8",
    b"\xfe\xff": "UTF-16; convert it to UTF-8",
}


# Line number from 1, and the bytes of the line, the row of a Parquet file, or a RecordError.
NumberedRecords = Iterator[tuple[int, object]]


def _lines(stream: io.BufferedReader, source: RecordFile) -> NumberedRecords:
    """Yield numbered lines as bytes; the rest of a line over the limit is skipped by blocks."""
    number = 0
    try:
        while line := stream.readline(LINE_LIMIT + 1):
            number, size = number + 1, len(line)
            if size > LINE_LIMIT and not line.endswith(b"\n"):
                while (rest := stream.readline(BLOCK)) and not rest.endswith(b"\n"):
                    size += len(rest)
                size += len(rest)
                yield number, LostRecordsError("line too long", f"{size:,} bytes, more than {LINE_LIMIT:,}")
            else:
                yield number, line
            source.offset += size
    except BrokenArchiveError as error:
        yield number + 1, LostRecordsError("truncated archive", str(error))


def _json_lines(stream: io.BufferedReader, source: RecordFile) -> NumberedRecords:
    for number, line in _lines(stream, source):
        if not isinstance(line, bytes):
            yield number, line
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
            other = next((kind for magic, kind in _OTHER_KINDS.items() if line.startswith(magic)), None)
            if other:
                yield number, LostRecordsError("not JSON Lines", f"the file is {other}")
                return
        if line.strip():
            yield number, line


def _parquet(stream: Any, columns: Columns) -> NumberedRecords:
    """Yield the rows of a Parquet file, numbered from 1; a corrupt file ends with a LostRecordsError."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(stream) as file:
            leaves = [file.schema.column(i).path for i in range(len(file.schema))]
            for batch in file.iter_batches(batch_size=256, columns=choose_paths(leaves, columns)):
                for i in range(batch.num_rows):
                    number += 1
                    yield number, _row(batch.slice(i, 1))
    except (pyarrow.ArrowException, OSError) as error:
        yield number + 1, LostRecordsError("truncated archive", str(error)[:200])


def _row(batch: Any) -> object:
    if batch.nbytes > LINE_LIMIT:
        return RecordError("line too long", f"more than {LINE_LIMIT} bytes")
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return RecordError("invalid UTF-8", f"byte {error.start} of a string")
    except (ValueError, OverflowError) as error:  # dates that Python's cannot hold
        return RecordError("unreadable value", str(error)[:200])


def read_records(
    source: RecordFile, columns: Columns, progress: Callable[[int], object] = lambda size: None
) -> NumberedRecords:
    """Yield the numbered records of one file; a bad record gives a RecordError.

    Args:
        source: file from `sources.find_files`; its hash is complete once the iterator is exhausted.
        columns: columns of Parquet that are decoded.
        progress: called with the number of stored bytes of each block read.
    """
    with source.open() as raw:
        hashing = buffered(HashingReader(raw, source, progress))
        if source.name.endswith(".parquet"):
            with _seekable(raw, hashing, source) as file:
                yield from _parquet(file, columns)
            return
        plain = decompressed(source.name, hashing)  # kept alive: its finalizer closes the streams below it
        yield from _json_lines(plain, source)
        _drain(hashing)  # the hash covers the whole file, also after an archive's end


@contextlib.contextmanager
def _seekable(raw: Any, hashing: io.BufferedReader, source: RecordFile) -> Generator[Any]:
    """Hash a whole file, then yield it, or a temporary copy of a remote one, which need not be seekable."""
    if source.is_local:
        _drain(hashing)
        yield raw
        return
    with tempfile.TemporaryFile() as copy:
        try:
            shutil.copyfileobj(hashing, copy, BLOCK)
        except OSError as error:
            place = f"{tempfile.gettempdir()} cannot hold a copy of {source.name}"
            raise UserError(f"{place} ({first_line(error)}); name a larger folder in TMPDIR") from None
        copy.seek(0)
        yield copy


def _drain(stream: io.BufferedReader) -> None:
    while stream.read(BLOCK):
        pass
