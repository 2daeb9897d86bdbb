"""`bin/experiment NAME`: plan, check, analyse and report experiments, and simulate some whose truth is known."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtempl import cli, files
from jaxtempl.config import parsing
from jaxtempl.config.experiments import (
    ExperimentAnalyseConfig,
    ExperimentCheckConfig,
    ExperimentPlanConfig,
    ExperimentReportConfig,
    ExperimentSimulateConfig,
)
from jaxtempl.errors import UserError


def plan(argv: Sequence[str]) -> None:
    """Run `bin/experiment plan`."""
    from jaxtempl.experiments import aggregate, plan

    def estimates(given: Mapping[str, Any]) -> list[dict[str, float | int]]:
        return [plan.traffic_of(aggregate.aggregate(given["events"]))] if given.get("events") else []

    config = parsing.parse(ExperimentPlanConfig, argv, estimates)
    found = plan.plan(config)
    print("\n".join(plan.format_plan(found)))
    if config.out:
        print(plan.write(found, Path(config.out)))


def check(argv: Sequence[str]) -> None:
    """Run `bin/experiment check`."""
    from jaxtempl.experiments import pipeline, validity

    config = parsing.parse(ExperimentCheckConfig, argv)
    found = pipeline.check(config)
    print(validity.format_checks(found))
    if config.out:
        files.write_json(Path(config.out), {"test": config.test, "checks": files.plain(found)})
    validity.refuse_failed(config.test, found)


def analyse(argv: Sequence[str]) -> None:
    """Run `bin/experiment analyse`."""
    from jaxtempl.experiments import pipeline

    config = parsing.parse(ExperimentAnalyseConfig, argv)
    print(pipeline.analyse(config).verdict)
    print(f"page: {config.out / pipeline.PAGE}")


def report(argv: Sequence[str]) -> None:
    """Run `bin/experiment report`."""
    from jaxtempl.experiments import report

    config = parsing.parse(ExperimentReportConfig, argv)
    for line in report.summary(report.write(config.events, config.out)):
        print(line)
    print(config.out / "index.html")


def simulate(argv: Sequence[str]) -> None:
    """Run `bin/experiment simulate`."""
    from jaxtempl.experiments import simulate, world

    config = parsing.parse(ExperimentSimulateConfig, argv)
    truth = config.out.with_suffix(".truth.parquet")
    for path in (config.out, truth):
        if path.exists() and not config.overwrite:
            raise UserError(f"{path} exists already; --overwrite replaces it, or name another file with --out")
    count = simulate.simulate(world.read(config.world), config.out, truth, config.seed)
    print(f"{config.out}: {count:,} suggestions; {truth}: their potential outcomes")


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], type]] = {
    "plan": (plan, ExperimentPlanConfig),
    "check": (check, ExperimentCheckConfig),
    "analyse": (analyse, ExperimentAnalyseConfig),
    "report": (report, ExperimentReportConfig),
    "simulate": (simulate, ExperimentSimulateConfig),
}


def main(argv: Sequence[str]) -> None:
    """Run `bin/experiment`."""
    name = cli.named("bin/experiment", COMMANDS, argv)
    if name:
        COMMANDS[name][0](argv[1:])
