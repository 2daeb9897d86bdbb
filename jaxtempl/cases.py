"""Cases, messages and templates: what they are, how they are validated, and how files of them are read.

Reading never stops at a bad record: it is set aside in a quarantine with its file, line and reason, and the run
goes on; `Quarantine.check` fails the run when too many were bad.
"""

import dataclasses
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from jaxtempl.errors import UserError

ROLES = ("customer", "system", "advocate")
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
LINE_LIMIT = 50_000_000  # bytes of one record; a longer line is skipped without being held whole
BLOCK = 1 << 20  # bytes read at a time
STEP = 1 << 10  # compressed bytes at a time: zstd makes at most 128 KiB of 4 bytes, so 32 MiB of these


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One message; `template` is set on advocates' messages that were sent from one."""

    role: str
    text: str
    template: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One support conversation, its messages in order; none of them is empty."""

    case_id: str
    messages: tuple[Message, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """A canned reply and its slot, the row of the head that scores it.

    Attributes:
        observed: the text is the most frequent reply seen with this id, not one that the owner of the templates wrote.
        count: training examples.
    """

    slot: int
    id: str
    text: str
    active: bool
    observed: bool
    count: int


class RecordError(UserError):
    """A record that cannot be used; `reason` is the short name that quarantined records are counted by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def _kind(value: object) -> str:
    names: dict[type[object], str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError("wrong type", f"is {_kind(value)}; an object is allowed")
    return cast(dict[str, Any], value)


def _text(record: dict[str, Any], key: str) -> str:
    """The string at `key`, which must be there and have no lone surrogate (such text has no UTF-8 form)."""
    value = record.get(key)
    if not isinstance(value, str):
        if key not in record:
            raise RecordError("missing field", f"has no {key!r}")
        raise RecordError("wrong type", f"{key!r} is {_kind(value)}; a string is allowed")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RecordError("invalid text", f"{key!r} has a lone surrogate") from None
    return value


def _message(value: object, label: str) -> Message:
    record = _object(value)
    role, text = _text(record, "role"), _text(record, "text")
    if role not in ROLES:
        raise RecordError("unknown role", f"'role' is {role[:40]!r}; one of {', '.join(ROLES)} is allowed")
    labelled = role == "advocate" and record.get(label) is not None
    return Message(role, text, (_text(record, label) or None) if labelled else None)


def _messages(values: list[object], label: str) -> Iterator[Message]:
    i = 0
    try:
        for i, value in enumerate(values):  # noqa: B007 - the handler names it
            message = _message(value, label)
            if message.text.strip():
                yield message
    except RecordError as error:
        raise RecordError(error.reason, f"messages[{i}] {error.detail}") from None


def case_from(record: object, label: str = "template") -> Case:
    """A case out of one decoded JSON object; messages that are empty after strip are dropped, unknown keys ignored.

    Args:
        record: `{"case_id", "messages": [{"role", "text", <label>?}, ...]}`.
        label: which key of an advocate's message names its template.

    Raises:
        RecordError: (a UserError) naming the field that is missing or wrong.
    """
    fields = _object(record)
    case_id = _text(fields, "case_id")
    if not case_id:
        raise RecordError("missing field", "'case_id' is empty")
    values = fields.get("messages")
    if not isinstance(values, list):
        if "messages" not in fields:
            raise RecordError("missing field", "has no 'messages'")
        raise RecordError("wrong type", f"'messages' is {_kind(values)}; a list is allowed")
    messages = tuple(_messages(cast(list[object], values), label))
    if not messages:
        raise RecordError("empty case", "no message has text")
    return Case(case_id, messages)


def document_from(record: object) -> tuple[str, str]:
    """Id and text of one `{"id", "text"}` record.

    Raises:
        RecordError: (a UserError) naming the field that is missing or wrong.
    """
    fields = _object(record)
    name, text = _text(fields, "id"), _text(fields, "text")
    if not text.strip():
        raise RecordError("empty document", "'text' is blank")
    return name, text


class DigestSet:
    """A growing set of 16-byte digests that costs about 16 bytes each: one sorted array and a few recent ones.

    The recent digests are merged when they are more than 1/64 of all, so their Python objects stay a small part.
    """

    def __init__(self) -> None:
        self._sorted = np.empty(0, "S16")
        self._recent: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def add(self, digest: bytes) -> bool:
        """Adds; False when it was there already."""
        if digest in self._recent or self._in_sorted(digest):
            return False
        self._recent.add(digest)
        if len(self._recent) > max(4096, len(self._sorted) // 64):
            self._merge()
        return True

    def _in_sorted(self, digest: bytes) -> bool:
        # numpy's S16 drops trailing zero bytes on the way out; two digests of 16 bytes compare equal only when they are
        key = np.frombuffer(digest, "S16")
        place = int(np.searchsorted(self._sorted, key)[0])
        return place < len(self._sorted) and self._sorted[place : place + 1].tobytes() == digest

    def _merge(self) -> None:
        recent = np.sort(np.frombuffer(b"".join(self._recent), "S16"))
        self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, recent), recent)
        self._recent = set()


def digest_of(text: bytes) -> bytes:
    """The 16 bytes that stand for a text wherever texts are compared."""
    return hashlib.blake2b(text, digest_size=16).digest()


class Quarantine:
    """Bad records, counted and written one JSON line each as `{"file", "line", "reason", "detail"}`.

    Attributes:
        good: records that were kept.
        reasons: bad records by reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.good = 0
        self.reasons: Counter[str] = Counter()
        self._examples: list[str] = []
        path.touch()

    def add(self, file: str, line: int, error: RecordError) -> None:
        """Sets one record aside; its text is not copied, file and line find it."""
        record = {"file": file, "line": line, "reason": error.reason, "detail": error.detail}
        with self.path.open("a") as out:
            out.write(json.dumps(record) + "\n")
        self.reasons[error.reason] += 1
        if len(self._examples) < 1:
            self._examples.append(f"{file} line {line}: {error}")

    def check(self, max_bad: float, listed: Path) -> None:
        """Raises UserError, naming where the bad records are `listed`, when over the share `max_bad` of all was bad."""
        bad = self.reasons.total()
        if bad > max_bad * (bad + self.good):
            kinds = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
            raise UserError(
                f"{bad} of {bad + self.good} records are bad ({kinds}), more than max_bad={max_bad:g} allows; "
                f"the first is {self._examples[0]}; all are listed in {listed}"
            )


@dataclasses.dataclass
class Source:
    """One input file: its URL, its size, and the sha256 of the bytes read so far."""

    url: str
    size: int
    hash: Any = dataclasses.field(default_factory=hashlib.sha256)


class _Hashing(io.RawIOBase):
    """A readable view of `inner`, any of fsspec's files, that hashes and counts what passes."""

    def __init__(self, inner: Any, source: Source, progress: Callable[[int], object]) -> None:
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
    """The plain bytes of gzip members or zstd frames, handed out as soon as they are known.

    The standard readers either lose what they hold when an archive breaks off or do not notice that it did; here
    every byte before the break comes first, and then BrokenArchiveError.
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
        """Decompresses one step; False at the end."""
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
    """An archive that ends early or holds noise."""


def _buffered(raw: io.RawIOBase) -> io.BufferedReader:
    return io.BufferedReader(cast(Any, raw), BLOCK)


def _plain(url: str, raw: io.BufferedReader) -> io.BufferedReader:
    """The decompressed bytes of an opened file, by its suffix."""
    if url.endswith(".gz"):
        return _buffered(_Decompressing(raw, lambda: zlib.decompressobj(wbits=31)))
    if url.endswith(".zst"):
        import zstandard

        return _buffered(_Decompressing(raw, zstandard.ZstdDecompressor().decompressobj))
    return raw


Parsed = TypeVar("Parsed")
Numbered = Iterator[tuple[int, object]]  # line number from 1, and the decoded record or the RecordError in its place


def _lines(stream: io.BufferedReader) -> Numbered:
    """Numbered lines as bytes; one over the limit comes as a RecordError, its rest skipped block by block."""
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


def _decoded(line: bytes) -> object:
    """The JSON value of a line, or the RecordError that stands for it."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return RecordError("invalid UTF-8", f"byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return RecordError("not JSON", str(error)[:200])


def _json_lines(stream: io.BufferedReader) -> Numbered:
    for number, line in _lines(stream):
        if isinstance(line, bytes):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # a byte order mark
            if line.strip():
                yield number, _decoded(line)
        else:
            yield number, line


def _parquet(stream: Any) -> Numbered:
    """Rows of a Parquet file, numbered from 1; a broken file is one RecordError."""
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


def sources(path: str) -> list[Source]:
    """The files that `path` names: a file, a folder, a glob, or a file's name without its suffix; any fsspec URL.

    Raises:
        UserError: nothing is there, or a file of another kind.
    """
    import fsspec

    try:
        system, inner = fsspec.core.url_to_fs(path)
        found = _matches(system, inner)
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not found:
        raise UserError(f"{path} names no file; a file, folder or glob of {', '.join(SUFFIXES)} is allowed")
    odd = next((name for name in found if not name.endswith(SUFFIXES)), None)
    if odd is not None:
        raise UserError(f"{odd} has none of the suffixes {', '.join(SUFFIXES)}; rename or convert it")
    return [Source(system.unstrip_protocol(name), system.size(name) or 0) for name in found]


def _matches(system: Any, path: str) -> list[str]:
    if re.search(r"[*?\[]", path) and not system.exists(path):
        return sorted(name for name in system.glob(path) if name.endswith(SUFFIXES))
    if system.isdir(path):
        return sorted(name for name in system.find(path) if name.endswith(SUFFIXES))
    if system.exists(path):
        return [path]
    return [path + suffix for suffix in SUFFIXES if system.exists(path + suffix)]


def records(source: Source, progress: Callable[[int], object] = lambda size: None) -> Numbered:
    """Streams the records of one file; bad ones come as RecordError, in their place.

    Args:
        source: one of `sources(path)`; its hash is complete once the iterator is exhausted.
        progress: told the number of compressed bytes of each block read.
    """
    import fsspec

    with fsspec.open(source.url, "rb") as raw:
        hashing = _buffered(_Hashing(raw, source, progress))
        if source.url.endswith(".parquet"):  # read by seeking, so hashed in a pass of its own
            _drain(hashing)
            yield from _parquet(raw)
            return
        plain = _plain(source.url, hashing)  # held, for it closes what is under it when it goes
        yield from _json_lines(plain)
        _drain(hashing)  # what follows an archive's end, or its break, counts for the hash


def _drain(stream: io.BufferedReader) -> None:
    while stream.read(BLOCK):
        pass


@dataclasses.dataclass
class Reader:
    """Reads cases and documents through one quarantine, so that a case_id counts once over all files of a run.

    Attributes:
        dropped_messages: messages that were empty after strip.
    """

    quarantine: Quarantine
    label: str = "template"
    progress: Callable[[int], object] = lambda size: None
    dropped_messages: int = 0
    _seen: DigestSet = dataclasses.field(default_factory=DigestSet)

    def cases(self, files: Sequence[Source]) -> Iterator[Case]:
        """The good cases of all files, streamed in order."""
        for record, case in self._good(files, self._case):
            self.dropped_messages += len(cast(dict[str, list[object]], record)["messages"]) - len(case.messages)
            yield case

    def documents(self, files: Sequence[Source]) -> Iterator[str]:
        """The texts of the good documents of all files, streamed in order."""
        return (text for _, text in self._good(files, self._document))

    def _case(self, record: object) -> Case:
        case = case_from(record, self.label)
        if not self._seen.add(digest_of(b"case " + case.case_id.encode())):
            raise RecordError("duplicate case_id", f"{case.case_id[:80]!r} came before")
        return case

    def _document(self, record: object) -> str:
        name, text = document_from(record)
        if not self._seen.add(digest_of(b"document " + name.encode())):
            raise RecordError("duplicate id", f"{name[:80]!r} came before")
        return text

    def _good(self, files: Sequence[Source], parse: Callable[[object], Parsed]) -> Iterator[tuple[object, Parsed]]:
        for source in files:
            for line, record in records(source, self.progress):
                try:
                    if isinstance(record, RecordError):
                        raise record
                    parsed = parse(record)
                except RecordError as error:
                    self.quarantine.add(source.url, line, error)
                else:
                    self.quarantine.good += 1
                    yield record, parsed
