"""The environment of the commands' processes that tests start."""

import os
from pathlib import Path

from jaxtempl.config.paths import ROOT

NO_TORCH = Path(__file__).parent / "no_torch"


def environment(devices: int = 1) -> dict[str, str]:
    """Return the environment of a user's command: some fake devices, and no torch, whose import takes seconds."""
    xla = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"  # the last one counts
    return {**os.environ, "XLA_FLAGS": xla, "PYTHONPATH": f"{NO_TORCH}:{ROOT}"}
