"""The page of a quantized bundle: its gain and its cost. It shows ids of templates, and no text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from converters.quantize import gate
from converters.quantize.gate import GateVerdict
from converters.quantize.report import NetworkFigures
from jaxtempl.reports import html
from jaxtempl.reports.html import Page, TableCell
from jaxtempl.specs.interval import Interval


def write(
    path: Path, run: str, verdict: GateVerdict, networks: Sequence[NetworkFigures], facts: Mapping[str, Any]
) -> None:
    """Write the page.

    Args:
        path: HTML file to write.
        run: Name of the run and its step.
        verdict: Verdict of the gate.
        networks: Figures of fp32, fp16 and the quantized network, which comes last.
        facts: Entries of bundle.json under `quantize`.
    """
    floats = " and ".join(network.dtype for network in networks[:-1])
    page = Page(f"{networks[-1].dtype} compared with {floats}: {run}", _lead(verdict, networks))
    _table(page, verdict, networks)
    if networks[-1].milliseconds:
        page.figure(_latency(networks), f"Median time of a call with one context in ONNX Runtime: {_machine(facts)}.")
    else:
        page.text("Latency depends on TensorRT; measure it on the machine that serves.")
    page.figure(
        _templates(verdict),
        "Change of each template's top-1 by its number of labelled contexts. A bundle with a template below the dashed "
        f"line, which starts at {gate.MIN_CONTEXTS} contexts, is rejected.",
    )
    rows: list[list[TableCell]] = [
        [change.name, change.contexts, change.before, change.after, f"{_change(change.drop):+.2f}"]
        for change in verdict.templates
    ]
    page.table(
        ["template", "contexts", "hits in fp32", f"hits in {networks[-1].dtype}", "change in points"],
        rows,
        f"All {len(rows):,} templates with labelled contexts, largest drop first",
        folded=True,
    )
    page.facts(_facts(run, facts)).write(path)


def _facts(run: str, facts: Mapping[str, Any]) -> dict[str, str]:
    entries = {"run": run, "dataset": f"{facts['dataset'][:12]}, {gate.SPLIT}", "machine": _machine(facts)}
    if "calibration" in facts:
        calibration = facts["calibration"]
        contexts = f"{calibration['contexts']:,} contexts of the {calibration['split']} split"
        entries["calibration"] = f"{calibration['scales']} over {contexts}"
    return entries


def _machine(facts: Mapping[str, Any]) -> str:
    machine = facts["machine"]
    software = f"{machine['threads']} threads, ONNX Runtime {machine['onnxruntime']}"
    return f"{machine['processor']}, {software}, load average {machine['load']} before"


def _lead(verdict: GateVerdict, networks: Sequence[NetworkFigures]) -> str:
    overall, quantized = verdict.overall, networks[-1]
    before, after = (f"{hits / overall.contexts:.2%}" for hits in (overall.before, overall.after))
    passed = "It passes the gate." if not gate.faults(verdict) else "It fails the gate, and was forced."
    weak = f" The gate is weak here: {'; '.join(gate.caveats(verdict))}." if gate.caveats(verdict) else ""
    return (
        f"On {overall.contexts:,} labelled {gate.SPLIT} contexts top-1 goes from {before} to {after}, and the file has "
        f"{quantized.bytes / networks[0].bytes:.0%} of the bytes of {networks[0].dtype}. {passed}{weak}"
    )


def _table(page: Page, verdict: GateVerdict, networks: Sequence[NetworkFigures]) -> None:
    lengths = list(networks[-1].milliseconds)
    cells: list[list[TableCell]] = [
        [
            network.dtype,
            html.Measured(f"{network.bytes / 1e6:,.1f}"),
            html.Measured(f"{network.top1:.2%}"),
            *(html.Measured(f"{network.milliseconds[length]:,.1f}") for length in lengths),
        ]
        for network in networks
    ]
    fall = verdict.drop
    change = Interval(_change(fall.value), _change(fall.high), _change(fall.low))
    page.table(
        ["", "MB", "top-1", *(f"ms, {length} tokens" for length in lengths)],
        cells,
        f"The change of top-1 is {change.value:+.2f} points, 95 % confidence interval {change.bounds('+.2f')} "
        f"by a bootstrap over cases; a drop of {-_change(gate.MAX_DROP):.1f} is allowed.",
        strong={len(networks) - 1},
    )


def _change(fall: Any) -> float:
    """Return a drop as a change in points; 0 has no sign."""
    return -100 * float(fall) + 0.0


def _latency(networks: Sequence[NetworkFigures]) -> Figure:
    colours, markers = (html.BLUE, html.GREEN, html.ORANGE), "so^"
    with html.drawing() as (figure, axes):
        tokens = [int(length) for length in networks[-1].milliseconds]
        for network, colour, marker in zip(networks, colours, markers, strict=True):
            axes.plot(
                tokens,
                list(network.milliseconds.values()),
                color=colour,
                marker=marker,
                markersize=5,
                label=network.dtype,
            )
        axes.set(xlabel="tokens", ylabel="milliseconds", ylim=(0, None), xticks=tokens)
        axes.legend()
    return figure


def _templates(verdict: GateVerdict) -> Figure:
    contexts = np.array([change.contexts for change in verdict.templates])
    changes = np.array([_change(change.drop) for change in verdict.templates])
    rejected = (contexts >= gate.MIN_CONTEXTS) & (changes < _change(gate.MAX_TEMPLATE_DROP))
    with html.drawing() as (figure, axes):
        axes.scatter(contexts[~rejected], changes[~rejected], 26, color=html.BLUE, alpha=0.6, linewidths=0)
        axes.scatter(contexts[rejected], changes[rejected], 40, color=html.ORANGE, marker="X", linewidths=0)
        html.logarithmic(axes, "x")
        bound, right = _change(gate.MAX_TEMPLATE_DROP), max(contexts.max(), 2 * gate.MIN_CONTEXTS)
        axes.plot([gate.MIN_CONTEXTS, right], [bound, bound], color="#888888", linewidth=1, linestyle="--")
        limit = max(5.0, 1.1 * float(np.abs(changes).max()))
        axes.set(xlabel="labelled contexts of the template", ylabel="change of top-1, points", ylim=(-limit, limit))
    return figure
