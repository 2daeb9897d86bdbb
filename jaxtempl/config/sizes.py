"""The named sizes of `configs/sizes/` and the defaults that each brings to a training."""

from pathlib import Path
from typing import Any, Literal

from jaxtempl.config.parsing import load
from jaxtempl.config.paths import ASSETS, CONFIGS
from jaxtempl.errors import UsageError


def size_names() -> list[str]:
    """Return the names of all sizes, short ones first."""
    return sorted((path.stem for path in (CONFIGS / "sizes").glob("*.yaml")), key=lambda name: (len(name), name))


def read_size(name: str) -> dict[str, Any]:
    """Return `configs/sizes/NAME.yaml`: architecture, weights, tokenizer and the defaults of each phase.

    Raises:
        UsageError: There is no such size.
    """
    if name not in size_names():
        raise unknown_size(name)
    return load(CONFIGS / "sizes" / f"{name}.yaml")


def unknown_size(name: str) -> UsageError:
    """Return the error of a size that `configs/sizes/` lacks."""
    return UsageError(f"--size={name!r} is unknown; allowed: {', '.join(size_names())}")


def tokenizer_path(name: str) -> Path:
    """Return the tokenizer.json of a size, or Pythia's if `name` is empty."""
    tokenizer = read_size(name)["tokenizer"] if name else "pythia"
    return ASSETS / "nano" / "tokenizer.json" if tokenizer == "nano" else ASSETS / "tokenizers" / f"{tokenizer}.json"


def training_layers(phase: Literal["adapt", "finetune"], size: str, recipe: str) -> list[dict[str, Any]]:
    """Return the layers under a training's flags, lowest first: the phase's file, the size's, the paper's table."""
    layers = [load(CONFIGS / f"{phase}.yaml"), read_size(size).get(phase, {})]
    return [*layers, load(CONFIGS / f"{phase}-paper.yaml")] if recipe == "paper" else layers
