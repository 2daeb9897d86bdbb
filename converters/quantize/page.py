"""The page of a quantised bundle: what it gains and what it costs, drawn. Ids of templates are shown, no text is."""

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


def write(
    path: Path, run: str, verdict: GateVerdict, lines: Sequence[NetworkFigures], facts: Mapping[str, Any]
) -> None:
    """Writes the page.

    Args:
        path: of the HTML file.
        run: names the run and its step.
        verdict: of the gate.
        lines: fp32, fp16 and the quantised network, which comes last.
        facts: as bundle.json has them under `quantize`.
    """
    others = " and ".join(line.dtype for line in lines[:-1])
    page = Page(f"{lines[-1].dtype} beside {others}: {run}", _lead(verdict, lines))
    _table(page, verdict, lines)
    if lines[-1].milliseconds:
        page.figure(_latency(lines), f"Median time of a call with one context in ONNX Runtime: {_machine(facts)}.")
    else:
        page.text("Latency is TensorRT's, and is measured where it serves.")
    page.figure(
        _templates(verdict),
        "Change of each template's top-1 against its labelled contexts. Below the dashed line, which begins at "
        f"{gate.LEAST_CONTEXTS} contexts, a bundle is refused.",
    )
    rows: list[list[TableCell]] = [
        [change.name, change.contexts, change.before, change.after, f"{_change(change.fall):+.2f}"]
        for change in verdict.templates
    ]
    page.table(
        ["template", "contexts", "hits in fp32", f"hits in {lines[-1].dtype}", "change in points"],
        rows,
        f"All {len(rows):,} templates with labelled contexts, greatest fall first",
        folded=True,
    )
    page.facts(_facts(run, facts)).write(path)


def _facts(run: str, facts: Mapping[str, Any]) -> dict[str, str]:
    told = {"run": run, "dataset": f"{facts['dataset'][:12]}, {gate.SPLIT}", "machine": _machine(facts)}
    if "calibration" in facts:
        own = facts["calibration"]
        told["calibration"] = f"{own['scales']} over {own['contexts']:,} contexts of the {own['split']} split"
    return told


def _machine(facts: Mapping[str, Any]) -> str:
    own = facts["machine"]
    return f"{own['processor']}, {own['threads']} threads, ONNX Runtime {own['onnxruntime']}, load {own['load']} before"


def _lead(verdict: GateVerdict, lines: Sequence[NetworkFigures]) -> str:
    overall, own = verdict.overall, lines[-1]
    before, after = (f"{hits / overall.contexts:.2%}" for hits in (overall.before, overall.after))
    passed = "It passes the gate." if not gate.faults(verdict) else "It does not pass the gate, and was forced."
    few = f" The gate says little here: {'; '.join(gate.doubts(verdict))}." if gate.doubts(verdict) else ""
    return (
        f"On {overall.contexts:,} labelled {gate.SPLIT} contexts top-1 goes from {before} to {after}, and the file has "
        f"{own.bytes / lines[0].bytes:.0%} of the bytes of {lines[0].dtype}. {passed}{few}"
    )


def _table(page: Page, verdict: GateVerdict, lines: Sequence[NetworkFigures]) -> None:
    lengths = list(lines[-1].milliseconds)
    cells: list[list[TableCell]] = [
        [
            line.dtype,
            html.Measured(f"{line.bytes / 1e6:,.1f}"),
            html.Measured(f"{line.top1:.2%}"),
            *(html.Measured(f"{line.milliseconds[length]:,.1f}") for length in lengths),
        ]
        for line in lines
    ]
    low, high = (f"{_change(share):+.2f}" for share in (verdict.fall.high, verdict.fall.low))
    page.table(
        ["", "MB", "top-1", *(f"ms, {length} tokens" for length in lengths)],
        cells,
        f"The change of top-1 is {_change(verdict.fall.value):+.2f} points, 95 % interval [{low}, {high}] of resampled "
        f"cases; a fall of {-_change(gate.MOST_FALL):.1f} is allowed.",
        strong={len(lines) - 1},
    )


def _change(fall: Any) -> float:
    """A fall as a change in points; 0 has no sign."""
    return -100 * float(fall) + 0.0


def _latency(lines: Sequence[NetworkFigures]) -> Figure:
    colours, markers = (html.BLUE, html.GREEN, html.ORANGE), "so^"
    with html.drawing() as (figure, axes):
        tokens = [int(length) for length in lines[-1].milliseconds]
        for line, colour, marker in zip(lines, colours, markers, strict=True):
            axes.plot(
                tokens, list(line.milliseconds.values()), color=colour, marker=marker, markersize=5, label=line.dtype
            )
        axes.set(xlabel="tokens", ylabel="milliseconds", ylim=(0, None), xticks=tokens)
        axes.legend()
    return figure


def _templates(verdict: GateVerdict) -> Figure:
    contexts = np.array([change.contexts for change in verdict.templates])
    moved = np.array([_change(change.fall) for change in verdict.templates])
    refused = (contexts >= gate.LEAST_CONTEXTS) & (moved < _change(gate.MOST_TEMPLATE_FALL))
    with html.drawing() as (figure, axes):
        axes.scatter(contexts[~refused], moved[~refused], 26, color=html.BLUE, alpha=0.6, linewidths=0)
        axes.scatter(contexts[refused], moved[refused], 40, color=html.ORANGE, marker="X", linewidths=0)
        html.logarithmic(axes, "x")
        bound, right = _change(gate.MOST_TEMPLATE_FALL), max(contexts.max(), 2 * gate.LEAST_CONTEXTS)
        axes.plot([gate.LEAST_CONTEXTS, right], [bound, bound], color="#888888", linewidth=1, linestyle="--")
        reach = max(5.0, 1.1 * float(np.abs(moved).max()))
        axes.set(xlabel="labelled contexts of the template", ylabel="change of top-1, points", ylim=(-reach, reach))
    return figure
