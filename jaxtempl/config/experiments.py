"""The configuration of `bin/experiment`."""

import dataclasses
from pathlib import Path

from jaxtempl.config.fields import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentSimulateConfig:
    """Simulate a world: events as bin/serve exports them, and the truth in a separate file."""

    world: str = option("null", "World: a name in configs/worlds/, or the path of a YAML file.")
    seed: int = option(0, "Seed of the simulation.", minimum=0)
    out: Path = option(
        Path("simulated.parquet"), "File of events to write; the truth is next to it, as NAME.truth.parquet."
    )
    overwrite: bool = option(False, "Replace both files if they exist.")
