"""A run of each phase of one model, and the Hugging Face folders that they convert to, which tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import shared

from converters.__main__ import main
from jaxtempl.config.training import AdaptConfig, FinetuneConfig
from jaxtempl.runs.run import Run
from jaxtempl.training import adapt, finetune

PHASES = ("adapt", "finetune")


def train(folder: Path, data: Path, size: str, length: int, weights: str = "") -> Run:
    """Adapt a model and fine-tune it from there, two updates each, into `folder`; return the fine-tuned run."""
    options: dict[str, Any] = {
        "size": size,
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "steps": 2,
        "save_every": 2,
        "mesh_data": 1,
        "mesh_fsdp": 1,
    }
    adapted = adapt.adapt(AdaptConfig(**options, data=str(data), weights=weights, out=f"{folder}/adapt"))
    source: dict[str, Any] = {"start": str(adapted.folder), "length": length, "data": data}
    return finetune.finetune(FinetuneConfig(**options, **source, out=f"{folder}/finetune"))


def runs(name: str, build: Callable[[Path], object]) -> dict[str, Run]:
    """Return the runs that `build` trains into a folder, by phase."""
    folder = shared.built(f"{name}-runs", build)
    return {phase: Run(folder / phase) for phase in PHASES}


def converted(name: str, build: Callable[[Path], object]) -> dict[str, Path]:
    """Return the Hugging Face folders that the command converts these runs to, by phase."""

    def convert(folder: Path) -> None:
        for phase, found in runs(name, build).items():
            main(["huggingface", f"--run={found.folder}", f"--out={folder / phase}"])

    folder = shared.built(f"{name}-converted", convert)
    return {phase: folder / phase for phase in PHASES}
