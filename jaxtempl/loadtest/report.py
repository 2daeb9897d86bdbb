"""Build report.json and its table for a terminal: counts, times and ids, and no text of a message."""

import importlib.metadata
import itertools
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

import jaxtempl
from jaxtempl.config.serving import LoadtestConfig
from jaxtempl.loadtest.client import LATE, SHED, SUPERSEDED
from jaxtempl.loadtest.requests import RequestContexts
from jaxtempl.serve.inference import processor
from jaxtempl.serve.schema import ModelAnswer

KIND = "loadtest"
RULES = {"p99": 0.99, "max": 1.0}  # required share of requests within the budget

RateRow = Mapping[str, Any]


def build_report(
    config: LoadtestConfig,
    started: str,
    model: ModelAnswer,
    inputs: RequestContexts,
    rows: Sequence[RateRow],
    minimum: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Return the content of report.json.

    Args:
        config: The command's configuration.
        started: Start of the test, in ISO 8601.
        model: The model that served.
        inputs: Contexts that the requests were made of.
        rows: Results of each rate, in the order of measurement.
        minimum: Minimum latency of the device, if known.
    """
    return {
        "kind": KIND,
        "url": config.url,
        "started": started,
        "model": msgspec.to_builtins(model),
        "arrivals": config.arrivals,
        "burstiness": config.burstiness if config.arrivals == "bursty" else None,
        "seed": config.seed,
        "minutes": config.minutes,
        "warmup": config.warmup,
        "timeout": config.timeout,
        "budget_ms": config.budget_ms,
        "inputs": {"cases": inputs.cases, "contexts": len(inputs.messages), "bad": inputs.bad},
        "rates": rows,
        "capacity": {
            rule: capacity((row["rate"], _passes(row, share)) for row in rows) for rule, share in RULES.items()
        },
        "device": config.device,
        "floor": minimum,
        "client": _client(),
    }


def _passes(row: RateRow, share: float) -> bool | None:
    """Return whether enough requests were answered within the budget; None for a void rate."""
    return None if row["void"] else row["in_budget"] >= share


def capacity(passes: Iterable[tuple[float, bool | None]]) -> float | None:
    """Return the highest rate up to which every rate passes, void ones aside; None if the lowest fails."""
    measured = sorted((rate, passed) for rate, passed in passes if passed is not None)
    passing = [rate for rate, _ in itertools.takewhile(lambda pair: pair[1], measured)]
    return passing[-1] if passing else None


def _client() -> dict[str, Any]:
    """Describe the machine and the packages that sent the requests."""
    packages = ("aiohttp", "uvloop", "hdrhistogram", "numpy")
    return {
        "processor": processor.name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {
            "jaxtempl": jaxtempl.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


COLUMNS = {  # columns of the terminal's table, with their widths
    "requests/s": 10,
    "average": 9,
    "P99": 9,
    "max": 9,
    "minute's P99": 13,
    "in budget": 10,
    "requests": 9,
    "shed": 6,
    "late": 6,
    "superseded": 11,
    "errors": 7,
    "sent/s": 8,
}


def format_table(report: Mapping[str, Any]) -> str:
    """Format the report as an aligned table in milliseconds, as the paper's Table 4."""
    model = report["model"]
    lines = [
        f"{model['size'] or 'model'} {model['version']} ({model['dtype']}, {model['backend']}) at {report['url']}: ms, "
        f"average of the worst minute"
    ]
    lines.append(_aligned(COLUMNS))
    for row in report["rates"]:
        lines.append(_aligned(_cells(row)))
        lines += [f"{'':10} void: {row['void']}"] if row["void"] else []
        lines += [f"{'':10} errors: {format_errors(row)}"] if row["errors"] else []
    return "\n".join([*lines, *summary(report)])


def _aligned(cells: Iterable[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))


def _cells(row: RateRow) -> list[str]:
    run, peak = row["run"] or {}, row["peak_minute"] or {}
    times = [peak.get("average"), run.get("p99"), run.get("max"), peak.get("p99")]
    return [
        f"{row['rate']:g}",
        *("-" if value is None else f"{value:.2f}" for value in times),
        "-" if row["in_budget"] is None else f"{row['in_budget']:.2%}",
        *(f"{row[name]:,}" for name in ("requests", SHED, LATE, SUPERSEDED)),
        f"{sum(row['errors'].values()):,}",
        f"{row['sent_rate']:.2f}",
    ]


def format_errors(row: RateRow) -> str:
    """Format the errors of a rate by kind."""
    return ", ".join(f"{count:,} {kind}" for kind, count in row["errors"].items())


def summary(report: Mapping[str, Any]) -> list[str]:
    """Summarize the rates in sentences."""
    if all(row["void"] for row in report["rates"]):
        return ["Nothing was measured: all rows are void."]
    budget, best = f"{report['budget_ms']:g} ms", report["capacity"]
    lines = [f"99 % of requests are answered within {budget} {_up_to(best['p99'])}, all of them {_up_to(best['max'])}."]
    if report["floor"]:
        lines.append(f"The device needs at least {report['floor']['ms']:.2f} ms for an answer.")
    if report["minutes"] % 1:
        lines.append(f"The last of {report['minutes']:g} minutes is incomplete; it counts as a minute here.")
    return lines


def _up_to(rate: float | None) -> str:
    return "at none of the rates" if rate is None else f"at up to {rate:g} requests per second"
