"""Write and check artefacts: atomic files and folders, sha256 manifests, containment."""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

from jaxtempl.errors import UserError

FORMAT = 1  # of a JSON artefact that states none
NEWEST_FORMAT = 2  # that this release reads; runs and evaluation reports have renamed keys since 1
FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a full disk, or of a user's share of it
MAX_JSON = 64 * 2**20  # bytes of a JSON file; a tokenizer.json of 250,000 tokens has about 30 million


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file, which is read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path, included: Callable[[str], bool] = lambda _: True) -> dict[str, dict[str, Any]]:
    """Return `{"sha256", "bytes"}` of every included file below `folder` except its manifest, by path."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    named = ((p.relative_to(folder).as_posix(), p) for p in paths)
    return {
        name: {"sha256": sha256(path), "bytes": path.stat().st_size}
        for name, path in named
        if name != "manifest.json" and included(name)
    }


def sums(folder: Path, included: Callable[[str], bool] = lambda _: True) -> dict[str, str]:
    """Return the sha256 sums of `list_files` alone."""
    return {name: entry["sha256"] for name, entry in list_files(folder, included).items()}


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")


@contextlib.contextmanager
def _full_disk_reported(path: Path) -> Generator[None]:
    """Raise UserError that names `path` if the block fills the disk; the system's own error names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        reason = f"{os.strerror(error.errno)} ({path.parent})"
        raise UserError(f"{path} cannot be written: {reason}; free some, or name another folder with --out") from None


@contextlib.contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """Yield a temporary path next to `path`, renamed to it only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with _full_disk_reported(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, replace: bool = False) -> Generator[Path]:
    """Yield a temporary folder next to `path`, renamed to it only if the block succeeds.

    Raises:
        UserError: `path` exists and `replace` is false.
    """
    if path.exists() and not replace:
        raise UserError(f"{path} exists already; remove it or name another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with _full_disk_reported(path):
            temporary.mkdir()
            yield temporary
            move_into_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_into_place(temporary: Path, path: Path) -> None:
    """Rename a folder; an older one is moved aside first and removed last, so a complete one always exists."""
    if not path.exists():
        temporary.rename(path)
        return
    aside = _temporary(path)
    path.rename(aside)
    temporary.rename(path)
    shutil.rmtree(aside)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; an object gets `"format": 1` unless it states its own."""
    if isinstance(value, dict):
        value = {"format": FORMAT, **value}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: named tuples as objects, NaN and infinities as null."""
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without its byte order mark.

    Raises:
        UserError: The file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start:,}; save it as UTF-8") from None


def read_json(path: Path) -> Any:
    """Read JSON that `write_json` or a user wrote.

    Raises:
        UserError: The file is missing, too large, not JSON, or of a newer format than this release reads.
    """
    try:
        refuse_large(path)
        value = json.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; is {path.parent} the folder you meant?") from None
    except (ValueError, RecursionError) as error:  # its syntax, its numbers or its depth
        raise UserError(f"{path} is not JSON: {error}") from None
    format_ = value.get("format", FORMAT) if isinstance(value, dict) else FORMAT
    if isinstance(format_, int) and format_ > NEWEST_FORMAT:
        raise UserError(f"{path} has format {format_}; this release reads up to {NEWEST_FORMAT}: update jaxtempl")
    return value


def refuse_large(path: Path, maximum: int = MAX_JSON) -> None:
    """Raise UserError if an existing file has more than `maximum` bytes, before it is read."""
    size = path.stat().st_size
    if size > maximum:
        raise UserError(f"{path} has {size:,} bytes; up to {maximum:,} are read: is it the file you meant?")


def check_sum(path: Path, entry: Any) -> None:
    """Compare a file with its entry in a manifest; sizes are compared before anything is read.

    Args:
        path: File, which may be missing.
        entry: `{"sha256", "bytes"}`, or anything else that the manifest holds instead.

    Raises:
        UserError: The entry has no size or sum, or the file has others.
    """
    if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or type(entry.get("sha256")) is not str:
        raise UserError(f"the manifest of {path.parent} has no size and sha256 of {path.name}; write the folder again")
    if not path.is_file():
        raise UserError(f"{path} is missing, and the manifest next to it lists it; copy the whole folder again")
    if path.stat().st_size != entry["bytes"]:
        got = f"{path.stat().st_size:,} bytes, not {entry['bytes']:,}"
        raise UserError(f"{path} has {got} as the manifest next to it states; copy the folder again")
    if sha256(path) != entry["sha256"]:
        raise UserError(f"{path} differs from the manifest next to it (sha256); copy the folder again")


def kind(path: Path) -> str | None:
    """Return the kind of a JSON artefact; None if there is no file or it states none."""
    try:
        value = read_json(path)
    except (UserError, OSError):
        return None
    return value.get("kind") if isinstance(value, dict) else None


def check_target(path: Path, overwrite: bool, manifest: str, kind_: str) -> None:
    """Check that a command may write a folder: the path is new, or `overwrite` is set and it holds the same kind.

    Raises:
        UserError: The path holds something else, or `overwrite` is not set.
    """
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path} exists already; --overwrite replaces it, or name another folder with --out")
    empty = path.is_dir() and not any(path.iterdir())
    if not empty and kind(path / manifest) != kind_:
        raise UserError(f"{path} is not a {kind_}, so --overwrite does not replace it; name another folder with --out")


def contained(folder: Path, name: str) -> Path:
    """Return the path of `name` inside `folder`, which itself may be reached through links.

    Raises:
        UserError: `name` is absolute, leaves the folder, or goes through a link, even to a file inside.
    """
    root = folder.resolve()
    path = Path(os.path.normpath(root / name))
    if Path(name).is_absolute() or not path.is_relative_to(root) or "\0" in name:
        raise UserError(f"{name!r} points outside {folder}; only files inside the folder are read")
    parts = path.relative_to(root).parts
    if any(root.joinpath(*parts[: depth + 1]).is_symlink() for depth in range(len(parts))):
        raise UserError(f"{name!r} in {folder} goes through a link, which is not followed; put the file itself there")
    return path


def downloaded(folder: Path, name: str) -> Path:
    """Return the path of a file of a downloaded folder, whether it exists or not.

    The hub's cache keeps a revision as links: `snapshots/REVISION/NAME` leads to a file of `blobs/`, next to
    `snapshots/`. These links are followed, since they lead to the same download; no other link is.

    Raises:
        UserError: `name` is absolute, leaves the folder, or goes through another link.
    """
    root = folder.resolve()
    snapshot = next((at for at in (root, root.parent) if at.parent.name == "snapshots"), None)
    if snapshot and Path(name).name == name and (root / name).is_symlink():
        blob = Path(os.path.realpath(root / name))
        if blob.parent == snapshot.parent.parent / "blobs":
            return blob
    return contained(folder, name)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line. A torn last line, which a crash left, is ended first."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + _json_line(record))


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"".join(map(_json_line, records)))


def _json_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines, or none if there is no file.

    A crash while a line is written may tear it or leave NUL bytes. Lines that hold no record are left out, and one line
    on standard error states their number.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    records = [_record(line.strip(b"\0")) for line in lines if line.strip()]
    torn = records.count(None)
    if torn:
        print(f"{path}: torn lines, as a crash leaves them, are left out: {torn}", file=sys.stderr)
    return [record for record in records if record is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # its syntax, its characters or its depth
        return None
    return value if isinstance(value, dict) else None
