"""Versions and commit, for a manifest."""

import importlib.metadata
import platform
import subprocess
from typing import Any

import jaxtempl
from jaxtempl.config.paths import ROOT


def provenance() -> dict[str, Any]:
    """Versions and commit, for a manifest."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")
    versions = {"jaxtempl": jaxtempl.__version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in packages}
    return {"versions": versions, "commit": _commit()}


def _commit() -> str | None:
    """The checkout's commit, or None outside one."""
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
