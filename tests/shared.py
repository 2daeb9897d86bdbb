"""Expensive folders that many tests share: built once per session for all workers, read-only, copied on write."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock

FOLDER = "JAXTEMPL_TESTS_SHARED"  # environment variable with the session's folder; `conftest` sets it


def built(name: str, build: Callable[[Path], object]) -> Path:
    """Return the shared folder of this name; the first worker that needs it builds it while the others wait."""
    root = Path(os.environ[FOLDER])
    with filelock.FileLock(root / f"{name}.lock"):
        if not (root / f"{name}.done").exists():  # built in place: runs record their datasets by absolute path
            shutil.rmtree(root / name, ignore_errors=True)
            build(root / name)
            (root / f"{name}.done").touch()
    return root / name


def copied(name: str, build: Callable[[Path], object], folder: Path) -> Path:
    """Return a copy of the shared folder that the test may change."""
    shutil.copytree(built(name, build), folder, dirs_exist_ok=True)
    return folder
