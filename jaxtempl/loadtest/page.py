"""Write the page of a load test: the content of report.json next to the paper's Table 4."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxtempl.loadtest.client import ANSWERED, LATE, SHED, SUPERSEDED
from jaxtempl.loadtest.report import RateRow, format_errors, summary
from jaxtempl.loadtest.table4 import PAPER, Latency
from jaxtempl.reports import html
from jaxtempl.reports.html import Measured, Page, TableCell

LoadtestReport = Mapping[str, Any]


def write_page(report: LoadtestReport, path: Path) -> None:
    """Write the page of a report."""
    model = report["model"]
    page = Page(
        f"Load test of {model['size'] or 'a model'}, {model['dtype']} on {model['backend']}", " ".join(summary(report))
    )
    _add_rates(page, report)
    _add_figures(page, report)
    _add_paper(page, report)
    _add_minutes(page, report)
    page.facts(_facts(report)).write(path)


def _add_rates(page: Page, report: LoadtestReport) -> None:
    columns = ["requests/s", "average, ms", "P99, ms", "maximum, ms", "in budget", "requests"]
    rows: list[list[TableCell]] = [_row(row) for row in report["rates"]]
    page.table(
        [*columns, "shed", "late", "superseded", "errors"],
        rows,
        "The average is that of the worst minute. Latencies are of answered requests, from the time each was due to "
        "the end of its answer. In budget: the share of all requests answered within "
        f"{report['budget_ms']:g} ms. Shed: 429, late: 504, superseded: 409.",
    )
    for row in report["rates"]:
        if row["void"]:
            page.text(f"The row of {row['rate']:g} requests/s is void: {row['void']}.")
        if row["errors"]:
            page.text(f"Errors at {row['rate']:g} requests/s: {format_errors(row)}.")


def _row(row: RateRow) -> list[TableCell]:
    return [
        Measured(f"{row['rate']:g}", "void" if row["void"] else ""),
        *_latencies(row),
        None if row["in_budget"] is None else Measured(f"{row['in_budget']:.2%}"),
        Measured(f"{row['requests']:,}", f"sent {row['sent_rate']:.2f}/s"),
        row[SHED],
        row[LATE],
        row[SUPERSEDED],
        sum(row["errors"].values()),
    ]


def _latencies(row: RateRow) -> list[TableCell]:
    run, peak = row["run"], row["peak_minute"]
    if not run:
        return [None] * 3
    return [
        Measured(f"{peak['average']:.2f}", f"whole run {run['average']:.2f}"),
        Measured(f"{run['p99']:.2f}", f"worst minute {peak['p99']:.2f}"),
        Measured(f"{run['max']:.2f}"),
    ]


def _add_figures(page: Page, report: LoadtestReport) -> None:
    measured = [row for row in report["rates"] if row["run"] and not row["void"]]
    rows = sorted(measured, key=lambda row: row["rate"])
    if rows:
        page.heading("Latency against rate")
        page.figure(_by_rate(rows, report), "This server. Void rows are not drawn.")
        page.figure(_p99(rows, report), "P99 next to the paper's on an NVIDIA A10 with TensorRT in FP16.")


def _by_rate(rows: Sequence[RateRow], report: LoadtestReport) -> Figure:
    lines = {
        "maximum": ([row["run"]["max"] for row in rows], html.ORANGE, "^"),
        "P99": ([row["run"]["p99"] for row in rows], html.BLUE, "o"),
        "average of the worst minute": ([row["peak_minute"]["average"] for row in rows], html.GREEN, "s"),
    }
    with html.drawing() as (figure, axes):
        for name, (values, colour, marker) in lines.items():
            axes.plot(_rates(rows), values, color=colour, marker=marker, markersize=5, label=name)
        if report["floor"]:
            axes.axhline(
                report["floor"]["ms"], color="#888888", linewidth=1, linestyle=":", label="minimum of the device"
            )
        _finish(axes, report)
    return figure


def _p99(rows: Sequence[RateRow], report: LoadtestReport) -> Figure:
    colours = (html.ORANGE, html.GREEN, html.PURPLE)
    with html.drawing() as (figure, axes):
        for (size, paper), colour in zip(PAPER.items(), colours, strict=True):
            values = [latency.p99 for latency in paper.values()]
            axes.plot(list(paper), values, color=colour, linestyle="--", marker=".", label=f"paper, {size}")
        axes.plot(_rates(rows), [row["run"]["p99"] for row in rows], color=html.BLUE, marker="o", label="this server")
        _finish(axes, report)
    return figure


def _rates(rows: Sequence[RateRow]) -> list[float]:
    return [row["rate"] for row in rows]


def _finish(axes: Axes, report: LoadtestReport) -> None:
    """Add the budget's line, scales, labels and legend, which both figures share."""
    axes.axhline(report["budget_ms"], color="#888888", linewidth=1, linestyle="--", label="budget")
    html.logarithmic(axes, "x")
    html.logarithmic(axes, "y")
    axes.set(xlabel="requests per second", ylabel="latency, ms")
    axes.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))


def _add_paper(page: Page, report: LoadtestReport) -> None:
    both = [row for row in report["rates"] if row["rate"] in PAPER["410m"]]
    if not both:
        return
    rows: list[list[TableCell]] = [[Measured(f"{row['rate']:g}"), _ours(row), *_papers(row["rate"])] for row in both]
    page.heading("Comparison with the paper").table(
        ["requests/s", "this server", *(f"paper, {size}" for size in PAPER)],
        rows,
        "Milliseconds: average of the worst minute / P99 / maximum. The paper's Table 4: TensorRT in FP16 on an "
        "NVIDIA A10, one request at a time.",
    )


def _ours(row: RateRow) -> TableCell:
    if not row["run"]:
        return None
    latency = Latency(row["peak_minute"]["average"], row["run"]["p99"], row["run"]["max"])
    return Measured(_joined(latency), "void" if row["void"] else "")


def _papers(rate: float) -> list[TableCell]:
    return [Measured(_joined(latencies[int(rate)])) for latencies in PAPER.values()]


def _joined(latency: Latency) -> str:
    return " / ".join(f"{value:.2f}" for value in latency)


def _add_minutes(page: Page, report: LoadtestReport) -> None:
    names = ("requests", ANSWERED, "average", "p99", "max")
    rows: list[list[TableCell]] = [
        [Measured(f"{row['rate']:g}"), i, *(minute.get(name) for name in names), sum(minute["errors"].values())]
        for row in report["rates"]
        for i, minute in enumerate(row["minutes"], 1)
    ]
    columns = ["requests/s", "minute", "requests", "answered", "average, ms", "P99, ms", "maximum, ms", "errors"]
    page.table(columns, rows, f"All {len(rows):,} minutes", folded=True)


def _facts(report: LoadtestReport) -> dict[str, str]:
    model, inputs, client = report["model"], report["inputs"], report["client"]
    bursts = f", variance of the gaps {report['burstiness']:g}" if report["burstiness"] else ""
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in inputs["bad"].items())
    return {
        "server": f"{report['url']}, version {model['version']}, {model['slots']:,} slots, window {model['window']:,}",
        "started": report["started"],
        "arrivals": f"{report['arrivals']}{bursts}, seed {report['seed']}",
        "each rate": f"{report['minutes']:g} minutes after {report['warmup']:g} seconds of warm-up",
        "inputs": f"{inputs['contexts']:,} contexts of {inputs['cases']:,} cases; left out: {rejected or 'nothing'}",
        "minimum time": _minimum(report["floor"]),
        "client": f"{client['processor']}, {client['cores']} cores, {client['system']}",
        "generator": ", ".join(
            f"{row['rate']:g}/s: lag {row['lag_ms']['p99']:.2f} ms (P99), {row['lag_ms']['max']:.2f} ms at most"
            for row in report["rates"]
            if row["lag_ms"]
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in client["versions"].items()),
    }


def _minimum(bound: Mapping[str, float] | None) -> str:
    return f"{bound['ms']:.2f} ms, {bound['operations'] / 1e9:,.1f} G operations" if bound else "unknown"
