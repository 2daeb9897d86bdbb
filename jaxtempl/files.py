"""The one place that writes and checks artefacts: atomic files and folders, sha256 manifests, containment."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from jaxtempl.errors import UserError

FORMAT = 1  # of a JSON artefact that does not state another
NEWEST_FORMAT = 2  # that this release reads: runs and evaluation reports have renamed keys since 1
MOST_JSON = 64 * 2**20  # bytes of a JSON file; a tokenizer.json of 250,000 words has some 30 million


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, dict[str, Any]]:
    """Return `{"sha256", "bytes"}` of every wanted file below `folder` except its manifest, by relative POSIX path."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    named = ((p.relative_to(folder).as_posix(), p) for p in paths)
    return {
        name: {"sha256": sha256(path), "bytes": path.stat().st_size}
        for name, path in named
        if name != "manifest.json" and wanted(name)
    }


def sums(folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, str]:
    """Return the sha256 sums of `list_files` alone."""
    return {name: entry["sha256"] for name, entry in list_files(folder, wanted).items()}


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")


@contextlib.contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """Yields a temporary path beside `path` that takes its name only when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, replace: bool = False) -> Generator[Path]:
    """Yields a temporary folder beside `path` that takes its name only when the block succeeds.

    Raises:
        UserError: `path` exists and `replace` is off.
    """
    if path.exists() and not replace:
        raise UserError(f"{path} exists already; remove it or name another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        move_into_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_into_place(temporary: Path, path: Path) -> None:
    """Renames; an older folder of that name is moved aside first and removed last, so a whole one always exists."""
    if not path.exists():
        temporary.rename(path)
        return
    aside = _temporary(path)
    path.rename(aside)
    temporary.rename(path)
    shutil.rmtree(aside)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically; an object gets `"format": 1` unless it says so itself."""
    if isinstance(value, dict):
        value = {"format": FORMAT, **value}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """What JSON can hold of a value: named tuples as objects, and numbers that are none as null."""
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Reads JSON that `write_json` or a user wrote.

    Raises:
        UserError: the file is missing, too large, is not JSON, or is of a newer format than this release reads.
    """
    try:
        refuse_large(path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; is {path.parent} the folder you meant?") from None
    except (ValueError, RecursionError) as error:  # of its syntax, its characters, its numbers or its depth
        raise UserError(f"{path} is not JSON: {error}") from None
    newer = value.get("format", FORMAT) if isinstance(value, dict) else FORMAT
    if isinstance(newer, int) and newer > NEWEST_FORMAT:
        raise UserError(f"{path} has format {newer}; this release reads up to {NEWEST_FORMAT}: update jaxtempl")
    return value


def refuse_large(path: Path, most: int = MOST_JSON) -> None:
    """Raises UserError, before it is read, when a file has more than `most` bytes; it must exist."""
    size = path.stat().st_size
    if size > most:
        raise UserError(f"{path} has {size:,} bytes; up to {most:,} are read: is it the file you meant?")


def check_sum(path: Path, known: Any) -> None:
    """Holds a file to what a manifest says of it; sizes are compared before anything is read.

    Args:
        path: may be missing.
        known: `{"sha256", "bytes"}` as a manifest has it, or whatever else is there in its place.

    Raises:
        UserError: the manifest has no size or sum, or the file has others.
    """
    if not isinstance(known, dict) or type(known.get("bytes")) is not int or type(known.get("sha256")) is not str:
        raise UserError(f"the manifest of {path.parent} has no size and sha256 of {path.name}; make the folder again")
    if not path.is_file():
        raise UserError(f"{path} is missing, and the manifest beside it names it; copy the whole folder again")
    if path.stat().st_size != known["bytes"]:
        got = f"{path.stat().st_size:,} bytes, not {known['bytes']:,}"
        raise UserError(f"{path} has {got} as the manifest beside it says; copy the folder again")
    if sha256(path) != known["sha256"]:
        raise UserError(f"{path} is not what the manifest beside it sums up (sha256); copy the folder again")


def kind(path: Path) -> str | None:
    """What a JSON artefact of ours says it is; None where there is none or it is somebody else's."""
    try:
        value = read_json(path)
    except (UserError, OSError):
        return None
    return value.get("kind") if isinstance(value, dict) else None


def check_target(path: Path, overwrite: bool, manifest: str, kind_: str) -> None:
    """Whether a command may write a folder there: a new one, or with `overwrite` in place of one of its own kind.

    Raises:
        UserError: it may not.
    """
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path} exists already; --overwrite replaces it, or name another folder with --out")
    empty = path.is_dir() and not any(path.iterdir())
    if not empty and kind(path / manifest) != kind_:
        raise UserError(f"{path} is no {kind_}, so --overwrite leaves it alone; name another folder with --out")


def contained(folder: Path, name: str) -> Path:
    """The path of `name` inside `folder`, which itself may be reached through links.

    Raises:
        UserError: `name` is absolute, leaves the folder, or goes through a link, wherever that leads.
    """
    root = folder.resolve()
    path = Path(os.path.normpath(root / name))
    if Path(name).is_absolute() or not path.is_relative_to(root) or "\0" in name:
        raise UserError(f"{name!r} points outside {folder}; only files inside the folder are read")
    parts = path.relative_to(root).parts
    if any(root.joinpath(*parts[: depth + 1]).is_symlink() for depth in range(len(parts))):
        raise UserError(f"{name!r} in {folder} goes through a link, which is not followed; put the file itself there")
    return path


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
