"""The scaling study: a matrix of adaptations and fine-tunings, run by the project's own commands, and what it says.

No JAX in here: a training is a process of its own.
"""

import importlib
from collections.abc import Sequence

from jaxtempl import cli
from jaxtempl.config import (
    ScalingAdviseConfig,
    ScalingAlignConfig,
    ScalingFilterConfig,
    ScalingReportConfig,
    ScalingRunConfig,
)

COMMANDS: dict[str, tuple[str, type]] = {
    "run": ("runner", ScalingRunConfig),
    "report": ("report", ScalingReportConfig),
    "advise": ("advise", ScalingAdviseConfig),
    "filter": ("filtering", ScalingFilterConfig),
    "align": ("corpora", ScalingAlignConfig),
}


def main(argv: Sequence[str]) -> None:
    """`bin/scaling NAME`."""
    name = cli.named("bin/scaling", COMMANDS, argv)
    if name:
        importlib.import_module(f"jaxtempl.scaling.{COMMANDS[name][0]}").main(argv[1:])
