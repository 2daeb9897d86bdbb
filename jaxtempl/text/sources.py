"""Find and open the files of records that a path names: on disk or at any fsspec URL."""

import dataclasses
import hashlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from jaxtempl.errors import UserError, first_line

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
HIDDEN = (".", "_")  # Spark, Hive and Arrow skip these names too: temporary files, checkpoints, logs
LISTED = 5  # skipped files that are named
STALLED = 60  # seconds without a byte after which an HTTP download fails


@dataclasses.dataclass
class RecordFile:
    """One input file, with the sha256 of the bytes read so far.

    Attributes:
        name: path or URL, without user, password and query.
        size: stored size in bytes; 0 where a server does not state it.
        system: fsspec file system.
        path: path in the file system.
        hash: sha256 of the bytes read.
        bytes_read: number of stored bytes read.
        offset: byte of the decompressed text at which the current line begins.
        partial: where and why records were lost, if the loss was accepted.
    """

    name: str
    size: int
    system: Any
    path: str
    hash: Any = dataclasses.field(default_factory=hashlib.sha256)
    bytes_read: int = 0
    offset: int = 0
    partial: str = ""

    @property
    def is_local(self) -> bool:
        """Return whether the file is on disk."""
        return _is_local(self.system)

    def locate(self, line: int) -> str:
        """Return the place of the record that was read last, as a message states it."""
        is_parquet = self.name.endswith(".parquet")
        return f"row {line:,}" if is_parquet else f"line {line:,}, byte {self.offset:,}"

    def facts(self) -> dict[str, Any]:
        """Return the manifest entry of the file, once all of it is read."""
        facts = {"name": self.name, "bytes": self.bytes_read, "sha256": self.hash.hexdigest()}
        return facts | ({"partial": self.partial} if self.partial else {})

    def open(self) -> Any:
        """Open the file for reading.

        Raises:
            UserError: The file cannot be opened.
        """
        try:
            return self.system.open(self.path, "rb")
        except Exception as error:  # fsspec's backends have no common class of errors
            raise UserError(f"{self.name} cannot be opened: {first_line(error)}") from None


class HashingReader(io.RawIOBase):
    """A readable view of an open `RecordFile` that hashes and counts the bytes read.

    Reading raises UserError if the source breaks off.
    """

    def __init__(self, inner: Any, source: RecordFile, progress: Callable[[int], object]) -> None:
        self._inner, self._source, self._progress = inner, source, progress

    def readable(self) -> bool:
        """Return true."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; return the number of bytes."""
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        self._source.hash.update(data)
        self._source.bytes_read += len(data)
        self._progress(len(data))
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            data = self._inner.read(size)
        except Exception as error:  # fsspec's backends have no common class of errors
            raise self._broken_off(first_line(error)) from None
        if not data and self._source.bytes_read < self._source.size:
            raise self._broken_off("the source ended")
        return data

    def _broken_off(self, reason: str) -> UserError:
        source = self._source
        size = f" of {source.size:,}" if source.size else ""
        return UserError(
            f"{source.name} broke off at byte {source.bytes_read:,}{size} ({reason}); "
            "run the command again, or copy the file to this machine first"
        )


def find_files(path: str) -> list[RecordFile]:
    """Return the files that `path` names: a file, folder, glob, or a file's name without its suffix; any fsspec URL.

    Hidden and temporary files of a folder or glob are skipped, and listed on standard error.

    Raises:
        UserError: no file matches, or a file has another suffix or a name that is not UTF-8.
    """
    import fsspec

    try:
        system, inner = fsspec.core.url_to_fs(path, **_options(path))
        sources = [
            RecordFile(_name(system, name), system.size(name) or 0, system, name) for name in _matches(system, inner)
        ]
    except Exception as error:  # fsspec's backends have no common class of errors
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    if not sources:
        raise UserError(f"{path} names no file; a file, folder or glob of {', '.join(SUFFIXES)} is allowed")
    for source in sources:
        _check_name(source.name)
    return sources


def _check_name(name: str) -> None:
    if not name.endswith(SUFFIXES):
        raise UserError(f"{name} has none of the suffixes {', '.join(SUFFIXES)}; rename or convert it")
    if any("\ud800" <= character <= "\udfff" for character in name):  # undecodable bytes of a file name
        raise UserError(f"{name!a} is a file name that is not UTF-8; rename the file")


def _is_local(system: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(system, LocalFileSystem)


def _options(path: str) -> dict[str, Any]:
    """Return the options of HTTP that read the stored bytes in one request, since some servers send no ranges."""
    if not path.startswith(("http://", "https://")):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
    headers = {"Accept-Encoding": "identity"}
    return {"block_size": 0, "client_kwargs": {"auto_decompress": False, "headers": headers, "timeout": timeout}}


def _name(system: Any, path: str) -> str:
    """Return a local file's path unchanged, or a URL without user, password and query."""
    if _is_local(system):
        return path
    parts = urlsplit(system.unstrip_protocol(path))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _matches(system: Any, path: str) -> list[str]:
    if re.search(r"[*?\[]", path) and not system.exists(path):
        base = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
        return _visible(base, path.removeprefix(base), system.glob(path))
    if path.endswith(SUFFIXES) and system.isfile(path):  # first: over HTTP, isdir reads the whole file
        return [path]
    if system.isdir(path):
        return _visible(path.rstrip("/"), "", system.find(path))
    if system.exists(path):
        return [path]
    return [path + suffix for suffix in SUFFIXES if system.exists(path + suffix)]


def _visible(base: str, pattern: str, names: Sequence[str]) -> list[str]:
    """Return the files of records in order, without hidden ones below `base`, unless the pattern asks for these."""
    found = sorted(name for name in names if name.endswith(SUFFIXES))
    if _is_hidden(pattern):
        return found
    hidden = [name for name in found if _is_hidden(name.removeprefix(base))]
    if hidden:
        relative = [name.removeprefix(f"{base}/") for name in hidden[:LISTED]]
        names = ", ".join(relative) + (", ..." if len(hidden) > LISTED else "")
        print(f"hidden and temporary files are skipped in {base} ({len(hidden):,}): {names}", file=sys.stderr)
    return [name for name in found if name not in set(hidden)]


def _is_hidden(path: str) -> bool:
    return any(part.startswith(HIDDEN) for part in path.split("/"))
