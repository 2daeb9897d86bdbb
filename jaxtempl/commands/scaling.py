"""`bin/scaling NAME`: a study, and what it says."""

import importlib
from collections.abc import Sequence

from jaxtempl import cli
from jaxtempl.config.scaling import (
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
    "align": ("alignment", ScalingAlignConfig),
}


def main(argv: Sequence[str]) -> None:
    """Run `bin/scaling`."""
    name = cli.named("bin/scaling", COMMANDS, argv)
    if name:
        importlib.import_module(f"jaxtempl.scaling.{COMMANDS[name][0]}").main(argv[1:])
