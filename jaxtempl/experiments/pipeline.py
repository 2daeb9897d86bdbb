"""Run `bin/experiment check` and `analyse`: from exported events to checks, and to `report.json` and its page."""

from pathlib import Path

from jaxtempl import files
from jaxtempl.config.experiments import ExperimentAnalyseConfig, ExperimentCheckConfig
from jaxtempl.experiments import analysis, analysis_page, validity
from jaxtempl.experiments.aggregate import aggregate
from jaxtempl.experiments.analysis import ABAnalysis
from jaxtempl.experiments.checks import Check
from jaxtempl.experiments.comparison import ComparedPairs, parse_arms, select
from jaxtempl.serve.experiments import definition
from jaxtempl.serve.experiments.definition import Experiments

PAGE, KIND = "index.html", "experiment analysis"


def check(config: ExperimentCheckConfig) -> list[Check]:
    """Return the checks of a test.

    Raises:
        UserError: The events cannot be read, or do not have the test.
    """
    return validity.run_checks(*_read(config))


def analyse(config: ExperimentAnalyseConfig) -> ABAnalysis:
    """Analyse a test, and write `report.json` and its page to a folder.

    Raises:
        UserError: The folder exists, the events cannot be read or do not have the test, or are too few.
    """
    with files.atomic_folder(config.out, config.overwrite) as folder:
        comparison, experiments = _read(config)
        checks = validity.run_checks(comparison, experiments)
        end = experiments.test.end if experiments and experiments.test else None
        found = analysis.analyse(comparison, checks, end, config.planned_se or None)
        files.write_json(folder / "report.json", {"kind": KIND, "events": config.events, **files.plain(found)})
        analysis_page.write_page(found, config.events, folder / PAGE)
    return found


def _read(config: ExperimentCheckConfig | ExperimentAnalyseConfig) -> tuple[ComparedPairs, Experiments | None]:
    parse_arms(config.test)
    experiments = definition.read(Path(config.experiments)) if config.experiments else None
    sums = aggregate(config.events, experiments.cap_seconds if experiments else None)
    return select(sums, config.test, experiments), experiments
