"""`bin/scaling NAME`: run a study, report it, advise from it; fit laws to tables; filter and align corpora."""

import json
from collections.abc import Callable, Sequence

from jaxtempl import cli, files
from jaxtempl.config import parsing
from jaxtempl.config.scaling import (
    ScalingAdviseConfig,
    ScalingAlignConfig,
    ScalingFilterConfig,
    ScalingFitConfig,
    ScalingLawsConfig,
    ScalingReportConfig,
    ScalingRunConfig,
)
from jaxtempl.errors import UsageError
from jaxtempl.specs.accelerators import ACCELERATORS


def run(argv: Sequence[str]) -> None:
    """Run `bin/scaling run`."""
    from jaxtempl.scaling import runner

    config = parsing.parse(ScalingRunConfig, argv)
    print(parsing.dump(config), flush=True)
    runner.run(config)


def report(argv: Sequence[str]) -> None:
    """Run `bin/scaling report`."""
    from jaxtempl.scaling import report

    written = report.write(parsing.parse(ScalingReportConfig, argv))
    for equivalent in written.equivalents:
        tokens = "no number of tokens" if equivalent.tokens is None else f"{equivalent.tokens:,.0f} tokens"
        print(f"{equivalent.size}: {tokens} ({equivalent.method})")
    print(f"{written.page}: {written.cells:,} cells, {written.holding_laws:,} laws hold")


def advise(argv: Sequence[str]) -> None:
    """Run `bin/scaling advise`."""
    from jaxtempl.scaling import results
    from jaxtempl.scaling.advice import Constraints, format_advice
    from jaxtempl.scaling.advise import Adviser

    config = parsing.parse(ScalingAdviseConfig, argv)
    if config.device == "none":
        raise UsageError(f"--device=none cannot train; pass one of {', '.join(ACCELERATORS)}")
    device = ACCELERATORS[config.device]
    constraints = Constraints(
        tokens=float(config.tokens),
        labels=float(config.labels),
        gpu_hours=config.gpu_hours,
        latency_ms=config.latency_ms,
        device=device,
        mfu=config.mfu,
        price_label=config.price_label,
        price_gpu_hour=config.price_gpu_hour or device.price,
        extrapolate=config.extrapolate,
    )
    advice = Adviser(results.read_all(config.runs), constraints).advise()
    print(json.dumps(files.plain(advice), indent=1) if config.json else "\n".join(format_advice(advice)))


def fit(argv: Sequence[str]) -> None:
    """Run `bin/scaling fit`."""
    from jaxtempl.scaling import fit_report

    written = fit_report.write(parsing.parse(ScalingFitConfig, argv))
    for name, interval in written.parameters.items():
        print(f"{name} = {interval:.4g}")
    print(f"{written.summary}\n{written.page}")


def laws(argv: Sequence[str]) -> None:
    """Run `bin/scaling laws`."""
    from jaxtempl.scaling.laws import names

    described = names.describe()
    if parsing.parse(ScalingLawsConfig, argv).json:
        print(json.dumps(files.plain(described), indent=1))
        return
    for law in described:
        print(f"{law.name}: {law.formula}\n    in {', '.join(law.variables)}; {law.least_data}; {law.source}")


def filter_corpus(argv: Sequence[str]) -> None:
    """Run `bin/scaling filter`."""
    from jaxtempl.scaling import filtering

    config = parsing.parse(ScalingFilterConfig, argv)
    counts = filtering.filter_corpus(config)
    print(f"{config.out}: {counts.kept:,} of {counts.total:,} passages, {counts.characters:,} characters")


def align(argv: Sequence[str]) -> None:
    """Run `bin/scaling align`."""
    from jaxtempl.scaling import alignment

    config = parsing.parse(ScalingAlignConfig, argv)
    measured = alignment.measure(config)
    ngrams = f"{measured.task_ngrams:,} n-grams of {config.task}"
    print(f"{measured.score:.1%} of {ngrams} are in the sample of {config.data}")


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], type]] = {
    "run": (run, ScalingRunConfig),
    "report": (report, ScalingReportConfig),
    "advise": (advise, ScalingAdviseConfig),
    "fit": (fit, ScalingFitConfig),
    "laws": (laws, ScalingLawsConfig),
    "filter": (filter_corpus, ScalingFilterConfig),
    "align": (align, ScalingAlignConfig),
}


def main(argv: Sequence[str]) -> None:
    """Run `bin/scaling`."""
    name = cli.named("bin/scaling", COMMANDS, argv)
    if name:
        COMMANDS[name][0](argv[1:])
