"""What report.json says, and the same as lines for a terminal: counts, times and ids, no word of a message."""

import importlib.metadata
import itertools
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

import jaxtempl
from jaxtempl.config.serving import LoadtestConfig
from jaxtempl.loadtest.client import LATE, SHED, SUPERSEDED
from jaxtempl.loadtest.requests import RequestContexts
from jaxtempl.serve.schema import ModelAnswer

KIND = "loadtest"
RULES = {"p99": 0.99, "max": 1.0}  # the share of requests that must be answered within the budget

RateRow = Mapping[str, Any]


def build_report(
    asked: LoadtestConfig,
    started: str,
    model: ModelAnswer,
    inputs: RequestContexts,
    rows: Sequence[RateRow],
    floor: Mapping[str, float] | None,
) -> dict[str, Any]:
    """What report.json says.

    Args:
        asked: the configuration.
        started: when, in ISO 8601.
        model: what served.
        inputs: what was asked about.
        rows: of each rate, in the order in which they were tried.
        floor: the least time of an answer, where it is known.
    """
    return {
        "kind": KIND,
        "url": asked.url,
        "started": started,
        "model": msgspec.to_builtins(model),
        "arrivals": asked.arrivals,
        "burstiness": asked.burstiness if asked.arrivals == "bursty" else None,
        "seed": asked.seed,
        "minutes": asked.minutes,
        "warmup": asked.warmup,
        "timeout": asked.timeout,
        "budget_ms": asked.budget_ms,
        "inputs": {"cases": inputs.cases, "contexts": len(inputs.messages), "bad": inputs.bad},
        "rates": rows,
        "capacity": {
            rule: capacity((row["rate"], _passes(row, share)) for row in rows) for rule, share in RULES.items()
        },
        "device": asked.device,
        "floor": floor,
        "client": _client(),
    }


def _passes(row: RateRow, share: float) -> bool | None:
    """Whether enough requests were answered within the budget, unanswered ones not being so; None where it is void."""
    return None if row["void"] else row["in_budget"] >= share


def capacity(passes: Iterable[tuple[float, bool | None]]) -> float | None:
    """The highest rate that passes, as all lower ones do that are not void; None where the lowest fails."""
    known = sorted((rate, passed) for rate, passed in passes if passed is not None)
    kept = [rate for rate, _ in itertools.takewhile(lambda pair: pair[1], known)]
    return kept[-1] if kept else None


def _client() -> dict[str, Any]:
    """The machine that sent, and with what."""
    packages = ("aiohttp", "uvloop", "hdrhistogram", "numpy")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {
            "jaxtempl": jaxtempl.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


COLUMNS = {  # of the terminal's table, with their widths
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


def format_table(found: Mapping[str, Any]) -> str:
    """The report in aligned lines, milliseconds as in the paper's Table 4."""
    model = found["model"]
    lines = [
        f"{model['size'] or 'model'} {model['version']} ({model['dtype']}, {model['backend']}) at {found['url']}: ms, "
        f"average of the worst minute"
    ]
    lines.append(_aligned(COLUMNS))
    for row in found["rates"]:
        lines.append(_aligned(_cells(row)))
        lines += [f"{'':10} void: {row['void']}"] if row["void"] else []
        lines += [f"{'':10} errors: {format_errors(row)}"] if row["errors"] else []
    return "\n".join([*lines, *summary(found)])


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
    """Errors by kind."""
    return ", ".join(f"{count:,} {kind}" for kind, count in row["errors"].items())


def summary(found: Mapping[str, Any]) -> list[str]:
    """What the rates come to, in sentences."""
    if all(row["void"] for row in found["rates"]):
        return ["Nothing was measured: all rows are void."]
    budget, best = f"{found['budget_ms']:g} ms", found["capacity"]
    lines = [f"99 % of requests are answered within {budget} {_up_to(best['p99'])}, all of them {_up_to(best['max'])}."]
    if found["floor"]:
        lines.append(f"The device needs at least {found['floor']['ms']:.2f} ms for an answer.")
    if found["minutes"] % 1:
        lines.append(f"Of {found['minutes']:g} minutes, the last is shorter than one; it counts as a minute here.")
    return lines


def _up_to(rate: float | None) -> str:
    return "at no rate that was tried" if rate is None else f"at rates up to {rate:g} a second"
