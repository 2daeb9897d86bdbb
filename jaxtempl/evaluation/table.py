"""An evaluation report as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from jaxtempl.evaluation import page
from jaxtempl.specs.interval import Interval


def format_table(report: Mapping[str, Any]) -> str:
    """Return the metrics of a report in a few aligned lines."""
    rows = {"run": report["metrics"]} | {name: each["metrics"] for name, each in report.get("baselines", {}).items()}
    columns = [name for name in report["metrics"] if not name.startswith("calibrated")]
    lines = [f"{report['run']}@{report['step']} on {report['split']}: {_format_counts(report['counts'])}"]
    lines.append(f"{'':18}" + "".join(f"{name.replace('_', ' '):>25}" for name in columns))
    for name in (n for n in page.BASELINE_NAMES if n in rows):
        cells = (format(Interval.from_json(rows[name][column])) for column in columns)
        lines.append(f"{page.BASELINE_NAMES[name]:18}" + "".join(f"{cell:>25}" for cell in cells))
    lines += _format_differences(report) if report.get("verdict") else []
    if "zero_shot" in report:
        lines += _format_zero_shot(report["zero_shot"])
    if "temperature" in report:
        error = Interval.from_json(report["metrics"]["calibrated_calibration_error"])
        lines.append(f"temperature {report['temperature']:.3f}: calibration error {error}")
    return "\n".join(lines)


def _format_differences(report: Mapping[str, Any]) -> list[str]:
    """Return the difference to each baseline and run in percentage points, and the verdict in words."""
    columns, *rows = page.differences(report)
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:{width}}" + "".join(f"{cell:>33}" for cell in row[1:]) for row in (columns, *rows)]
    return [*lines, *report["verdict"]]


def _format_zero_shot(scores: Mapping[str, Any]) -> list[str]:
    head = f"zero-shot, {scores['contexts']:,} contexts, {scores['texts']:,} texts"
    return [f"{head}, {name}: {_format_metrics(scores[name])}" for name in ("likeliest", "gained")]


def _format_metrics(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {Interval.from_json(value)}" for name, value in metrics.items())


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items())
