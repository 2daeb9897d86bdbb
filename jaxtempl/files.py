"""The one place that writes and checks artefacts: atomic files and folders, sha256 manifests, containment."""

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from jaxtempl.errors import UserError

FORMAT = 1  # the version of every JSON artefact that this release writes and the newest that it reads


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums(folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, str]:
    """sha256 of every wanted file below `folder` but its own manifest, by relative POSIX path, sorted."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    relative = ((p.relative_to(folder).as_posix(), p) for p in files)
    return {name: sha256(path) for name, path in relative if name != "manifest.json" and wanted(name)}


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


def read_json(path: Path) -> Any:
    """Reads JSON that `write_json` or a user wrote.

    Raises:
        UserError: the file is missing, is not JSON, or is of a newer format than this release reads.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; is {path.parent} the folder you meant?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    newer = value.get("format", FORMAT) if isinstance(value, dict) else FORMAT
    if isinstance(newer, int) and newer > FORMAT:
        raise UserError(f"{path} has format {newer}; this release reads up to {FORMAT}: update jaxtempl")
    return value


def kind(path: Path) -> str | None:
    """What a JSON artefact of ours says it is; None where there is none or it is somebody else's."""
    try:
        value = read_json(path)
    except (UserError, OSError):
        return None
    return value.get("kind") if isinstance(value, dict) else None


def contained(folder: Path, name: str) -> Path:
    """The path of `name` inside `folder`.

    Raises:
        UserError: `name` is absolute, leaves the folder, or goes through a link that leaves it.
    """
    path = (folder / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise UserError(f"{name!r} points outside {folder}; only files inside the folder are read")
    return path


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
