"""Provenance of an artefact: package versions and the commit of the checkout."""

import importlib.metadata
import platform
import subprocess
from typing import Any

import jaxtempl
from jaxtempl.config.paths import ROOT, SCRIPTS


def provenance() -> dict[str, Any]:
    """Return the versions and commit that a manifest records."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")
    versions = {"jaxtempl": jaxtempl.__version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in packages}
    return {"versions": versions, "commit": _commit()}


def _commit() -> str | None:
    """Return the checkout's commit, or None outside a checkout: an installed package may lie in somebody else's."""
    if not SCRIPTS.is_dir():
        return None
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
