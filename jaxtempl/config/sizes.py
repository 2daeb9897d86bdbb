"""The named sizes of `configs/sizes/` and the settings that they bring to a training."""

from pathlib import Path
from typing import Any, Literal

from jaxtempl.config.parsing import load
from jaxtempl.config.paths import ASSETS, CONFIGS
from jaxtempl.errors import UsageError


def read_size(name: str) -> dict[str, Any]:
    """`configs/sizes/NAME.yaml`: architecture, weights, tokenizer and this size's settings of each phase.

    Raises:
        UsageError: no such size.
    """
    names = sorted((p.stem for p in (CONFIGS / "sizes").glob("*.yaml")), key=lambda n: (len(n), n))
    if name not in names:
        raise UsageError(f"--size={name!r} is unknown; allowed: {', '.join(names)}")
    return load(CONFIGS / "sizes" / f"{name}.yaml")


def tokenizer_path(name: str) -> Path:
    """The tokenizer.json of a size, Pythia's when `name` is empty."""
    which = read_size(name)["tokenizer"] if name else "pythia"
    return ASSETS / "nano" / "tokenizer.json" if which == "nano" else ASSETS / "tokenizers" / f"{which}.json"


def training_layers(phase: Literal["adapt", "finetune"], size_name: str, recipe: str) -> list[dict[str, Any]]:
    """The layers under a training's flags, lowest first: the phase's file, the size's section, the paper's table."""
    layers = [load(CONFIGS / f"{phase}.yaml"), read_size(size_name).get(phase, {})]
    return [*layers, load(CONFIGS / f"{phase}-paper.yaml")] if recipe == "paper" else layers
