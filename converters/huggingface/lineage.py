"""The runs that led to a checkpoint, and the published weights that they started from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtempl import files
from jaxtempl.config import sizes
from jaxtempl.huggingface import hub
from jaxtempl.runs.run import Run


def stages(source: Run, step: int) -> list[tuple[Run, int]]:
    """Return the runs that led to a checkpoint with the last step of each, oldest first, as far as they exist."""
    init = source.manifest["start"]
    if "run" in init and _exists(init):
        return [*stages(Run(Path(init["run"])), init["step"]), (source, step)]
    return [(source, step)]


def _exists(init: Mapping[str, Any]) -> bool:
    """Return whether the checkpoint that initialized a run still exists, unchanged."""
    path = Path(init["run"]) / "checkpoints" / str(init["step"]) / "manifest.json"
    return path.is_file() and init["weights_sha256"] == {path.name: files.sha256(path)}


def base_model(first: Run) -> str | None:
    """Return the published weights on the hub that initialized a run; None for other weights."""
    size, init = first.manifest["size"], first.manifest["start"]
    if size not in sizes.size_names():
        return None
    published = sizes.read_size(size)["weights"]
    return published if init.get("weights") == published and hub.is_hub_id(published) else None
