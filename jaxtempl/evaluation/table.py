"""An evaluation report as aligned lines for a terminal."""

from collections.abc import Mapping
from typing import Any

from jaxtempl.evaluation import page


def format_table(report: Mapping[str, Any]) -> str:
    """The report in a few aligned lines."""
    rows = {"run": report["metrics"]} | {name: found["metrics"] for name, found in report.get("baselines", {}).items()}
    columns = [name for name in report["metrics"] if not name.startswith("calibrated")]
    lines = [f"{report['run']}@{report['step']} on {report['split']}: " + _said(report["counts"])]
    lines.append(f"{'':18}" + "".join(f"{name.replace('_', ' '):>22}" for name in columns))
    for name in (n for n in page.BASELINE_NAMES if n in rows):
        lines.append(
            f"{page.BASELINE_NAMES[name]:18}" + "".join(f"{_interval(rows[name][column]):>22}" for column in columns)
        )
    if "zero_shot" in report:
        asked = report["zero_shot"]
        for name in ("likeliest", "gained"):
            told = ", ".join(f"{key.replace('_', ' ')} {_interval(value)}" for key, value in asked[name].items())
            lines.append(f"zero-shot, {asked['contexts']:,} contexts, {asked['texts']:,} texts, {name}: {told}")
    if "temperature" in report:
        after = report["metrics"]["calibrated_calibration_error"]
        lines.append(f"temperature {report['temperature']:.3f}: calibration error {_interval(after)}")
    return "\n".join(lines)


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items())


def _interval(value: Mapping[str, float | None]) -> str:
    numbers = [f"{v:.3f}" if v is not None else "-" for v in (value["value"], value["low"], value["high"])]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
