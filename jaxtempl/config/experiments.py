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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentPlanConfig:
    """Plan an A/B test: the minimal detectable effect, the days that an effect takes, and the power curve.

    Defaults of the times and pairs are measured on picks of real people (RasaHQ/STAR); --events replaces them by yours.
    """

    events: str = option("", "Events of bin/serve events export to estimate the times and pairs from; flags override.")
    sd: float = option(24.8, "Standard deviation of a selection time, in seconds.", minimum=0)
    correlation: float = option(0.21, "Intra-cluster correlation of a pair's selection times.")
    picks: float = option(7.8, "Mean selections a pair.", minimum=0)
    picks_cv: float = option(0.55, "Coefficient of variation of the selections a pair.", minimum=0)
    pairs_a_day: float = option(0.0, "Pairs of advocate and case a day, of both arms together.", minimum=0)
    share: float = option(0.5, "Share of the pairs in the second arm.", minimum=0)
    advocates: int = option(0, "Number of advocates.", minimum=0)
    effect: float = option(0.45, "Difference to find, in seconds.")
    days: int = option(14, "Days of the test, for the minimal detectable effect.", minimum=1)
    out: str = option("", "Folder for report.json and a page with the power curve (default: print only).")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentCheckConfig:
    """Check the data of an A/B test: sample ratios, reassigned pairs, lost events, clocks, use of templates."""

    events: str = option("events.parquet", "Events of bin/serve events export: a file, a folder or a glob.")
    test: str = option("", "Arms to compare, the baseline first, such as v3/v4.")
    experiments: str = option(
        "", "File of the experiments in force, for the weights of the arms (default: equal ones)."
    )
    out: str = option("", "JSON file of the checks to write (default: none).")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentAnalyseConfig:
    """Analyse an A/B test: the difference of selection times with its interval, and a verdict."""

    events: str = option("events.parquet", "Events of bin/serve events export: a file, a folder or a glob.")
    test: str = option("", "Arms to compare, the baseline first, such as v3/v4.")
    experiments: str = option(
        "", "File of the experiments in force: weights, end of the test, cap on times (default: equal, ended, none)."
    )
    planned_se: float = option(
        0.0, "Standard error in seconds that the test was planned for (default: predicted by the first day).", minimum=0
    )
    out: Path = option(Path("analysis"), "Folder of report.json and its page.")
    overwrite: bool = option(False, "Replace the folder if it exists.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentReportConfig:
    """Report what suggestions are worth: the holdout against all other pairs, by week, model and template."""

    events: str = option("events.parquet", "Events of bin/serve events export: a file, a folder or a glob.")
    out: Path = option(Path("experiment-report"), "Folder for report.json and the page.")
