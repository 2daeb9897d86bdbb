"""The figures of a study: the paper's Figures 3, 8 and 9, and further ones."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxtempl import files
from jaxtempl.reports import html
from jaxtempl.scaling import table3
from jaxtempl.scaling.columns import ResultRow
from jaxtempl.scaling.laws import selection
from jaxtempl.scaling.laws.analysis import Analysis
from jaxtempl.scaling.laws.fitting import Fit

MARKERS = "os^Dv"  # by size
LINE_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 4, 1, 4, 1, 4)), (0, (9, 3)))  # by corpus
GREY = "#888888"
OPERATIONS = {
    "flops_all": "6 N D, N all parameters",
    "flops_body": "6 N D, N without embedding tables and head",
    "flops_exact": "all matrix products",
}
AXIS_LABELS = {
    "tokens": "tokens of adaptation",
    "domain_loss": "language-model loss on the domain, nats per token",
    "general_loss": "loss on other text, nats per token",
    "zero_shot_likeliest_top1": "share of contexts",
    "loss": "classification loss, nats",
    "top1": "top-1",
    "top3": "top-3",
    "top5": "top-5",
    **{name: f"operations of adaptation ({definition})" for name, definition in OPERATIONS.items()},
}


class StudyFigures:
    """Draws the figures of one study.

    Args:
        rows: Results of the study.
        analysis: Analysis of the results.
    """

    def __init__(self, rows: Sequence[ResultRow], analysis: Analysis) -> None:
        self.rows, self.analysis = selection.comparable(rows), analysis
        self.labels = selection.main_labels(self.rows)
        self._curves = selection.curves(self.rows, self.labels)
        self._sizes = selection.sizes(self.rows)
        self._corpora = list({row["corpus"]: None for row in self.rows if row["corpus"]})

    def plot(self, x: str, y: str, bases: bool = True) -> Figure:
        """Plot one curve for each size and corpus; a horizontal line is a base that has no position on the x axis.

        Args:
            x: Column of the x axis.
            y: Column of the y axis.
            bases: Whether a curve in domain loss begins at its base, which is far from the rest.
        """
        with html.drawing() as (figure, axes):
            for (size, corpus), rows in self._curves.items():
                kept = [row for row in rows if bases or row["start"] != "base"]
                self._curve(axes, kept, x, y, self._name(size, corpus), self._style(size, corpus))
            if x != "domain_loss" or not bases:
                self._base_levels(axes, y)
            if x != "domain_loss":
                html.logarithmic(axes, "x")
            _finish(axes, x, y)
        return figure

    def _curve(self, axes: Axes, rows: Sequence[ResultRow], x: str, y: str, name: str, style: dict[str, Any]) -> None:
        """Plot means over seeds with 95 % intervals; hollow markers show a run that did not reach its last update."""
        kept = [row for row in rows if row[x] and row[y] is not None]
        positions = sorted({row[x] for row in kept})
        means = [np.mean([row[y] for row in kept if row[x] == position]) for position in positions]
        finished = all(row["finished"] for row in kept)
        partial: dict[str, Any] = {} if finished else {"markerfacecolor": "none"}
        axes.plot(positions, means, label=name + (" (partial curve)" if partial else ""), **style, **partial)
        if kept and kept[0].get(f"{y}_low") is not None:
            low, high = (
                [np.mean([row[y + end] for row in kept if row[x] == position]) for position in positions]
                for end in ("_low", "_high")
            )
            errors = np.abs(np.array([low, high]) - means)
            axes.errorbar(positions, means, yerr=errors, fmt="none", ecolor=style["color"], elinewidth=0.7, alpha=0.7)

    def _base_levels(self, axes: Axes, y: str) -> None:
        for size in self._sizes:
            base = [
                row[y]
                for row in self.rows
                if (row["size"], row["start"], row["labels"]) == (size, "base", self.labels) and row[y] is not None
            ]
            if base:
                axes.axhline(float(np.mean(base)), color=self._colour(size), linewidth=1, linestyle=(0, (1, 3)))

    def _colour(self, size: str) -> str:
        return html.COLOURS[self._sizes.index(size) % len(html.COLOURS)]

    def _style(self, size: str, corpus: str) -> dict[str, Any]:
        marker = MARKERS[self._sizes.index(size) % len(MARKERS)]
        line = LINE_STYLES[self._corpora.index(corpus) % len(LINE_STYLES)]
        return {"color": self._colour(size), "marker": marker, "markersize": 4, "linewidth": 1.2, "linestyle": line}

    def _name(self, size: str, corpus: str) -> str:
        return f"{size}, {corpus}" if len(self._corpora) > 1 else size

    def loss_to_loss(self) -> Figure:
        """Plot Figure 3c with its regression lines, which leave out the bases; a dotted line is a base's loss."""
        figure = self.plot("domain_loss", "loss", bases=False)
        (axes,) = figure.axes
        regressions = self.analysis.loss_to_loss
        ends, height = np.array(axes.get_xlim()), axes.get_ylim()
        for size, line in regressions.by_size.items():
            axes.plot(ends, line.predict(ends), color=self._colour(size), linewidth=0.8, alpha=0.6, zorder=1)
        if regressions.pooled:
            axes.plot(ends, regressions.pooled.predict(ends), color=GREY, linewidth=1, linestyle="--", zorder=1)
        axes.set(xlim=ends, ylim=height)
        return figure

    def learning_curves(self, run: Callable[[str, str], Path], metric: str) -> Figure | None:
        """Plot Figure 9: loss by step of the adaptation.

        Args:
            run: Function from size and corpus to the run of the adaptation.
            metric: `loss` (each update) or `validation_loss` (each checkpoint).
        """
        logged = {key: _read_metric(run(*key), metric) for key in self._curves}
        if not any(steps for steps, _ in logged.values()):
            return None
        with html.drawing() as (figure, axes):
            for key, (steps, losses) in logged.items():
                style = self._style(*key)
                style["marker"] = "" if metric == "loss" else style["marker"]
                axes.plot(steps, losses, label=self._name(*key), **style)
            _finish(axes, "step of the adaptation", "loss, nats per token")
        return figure

    def by_labels(self, y: str) -> Figure:
        """Plot a quantity against labels: fully adapted models solid, bases dotted."""
        with html.drawing() as (figure, axes):
            for size in self._sizes:
                rows = [row for row in self.rows if row["size"] == size]
                last = [row for row in rows if row["start"] == "adapted" and row["adapt_step"] == row["adapt_steps"]]
                base = [row for row in rows if row["start"] == "base"]
                style = self._style(size, self._corpora[0] if self._corpora else "")
                self._curve(axes, last, "labels", y, f"{size}, adapted", style)
                self._curve(axes, base, "labels", y, f"{size}, not adapted", style | {"linestyle": ":"})
            html.logarithmic(axes, "x")
            _finish(axes, "labels", y)
        return figure

    def uplift(self, gains: Mapping[str, tuple[float, float]]) -> Figure:
        """Plot the top-1 gain of adaptation by size, next to the paper's.

        Args:
            gains: Parameters and percentage points of top-1, by size.
        """
        paper = {
            name: (table3.PARAMETERS[name], after.top1 - before.top1)
            for name, (before, after) in table3.PAPER.items()
            if name != "bert-large"
        }
        with html.drawing() as (figure, axes):
            for name, points, colour in (("this study", gains, html.BLUE), ("paper, Table 3", paper, html.ORANGE)):
                axes.plot(*zip(*points.values(), strict=True), color=colour, marker="o", label=name)
            html.logarithmic(axes, "x")
            axes.axhline(0, color=GREY, linewidth=1)
            _finish(axes, "parameters", "gain in top-1, percentage points")
        return figure

    def efficiency(self) -> Figure:
        """Plot how many times the general tokens each size needs to match the domain corpus."""
        with html.drawing() as (figure, axes):
            for corpus, colour in zip(self.analysis.efficiency, html.COLOURS, strict=False):
                by_size = corpus.ratio.by_size
                sizes = sorted(by_size)
                ratios = [by_size[size].value for size in sizes]
                axes.plot(sizes, ratios, color=colour, marker="o", label=f"{corpus.special} over {corpus.general}")
                bounds = [size for size in sizes if by_size[size].at_least]
                axes.plot(bounds, [by_size[size].value for size in bounds], "^", color=colour, markersize=10)
            html.logarithmic(axes, "x")
            html.logarithmic(axes, "y")
            axes.axhline(1, color=GREY, linewidth=1)
            _finish(axes, "parameters without embedding tables and head", "ratio of tokens at equal loss")
        return figure

    def forgetting(self) -> Figure:
        """Plot general loss against domain loss during the adaptation."""
        return self.plot("domain_loss", "general_loss")


def predicted(fit: Fit, quantity: str) -> Figure:
    """Plot measurements against a law's predictions, with the 95 % intervals of the law."""
    with html.drawing() as (figure, axes):
        intervals = fit.predict(fit.data.x)
        values, low, high = (np.array(column) for column in zip(*intervals, strict=True))
        errors = np.stack([values - low, high - values])
        axes.errorbar(values, fit.data.y, xerr=errors, fmt="o", markersize=3.5, color=html.BLUE, elinewidth=0.7)
        ends = [min(values.min(), fit.data.y.min()), max(values.max(), fit.data.y.max())]
        axes.plot(ends, ends, color=GREY, linewidth=1, zorder=1)
        axes.set(xlabel=f"{quantity}, predicted", ylabel=f"{quantity}, measured")
    return figure


def residuals(fit: Fit, variable: int, name: str) -> Figure:
    """Plot a law's residuals in per cent against one of its variables, one colour for each value of the first."""
    with html.drawing() as (figure, axes):
        first = np.unique(fit.data.x[:, 0], return_inverse=True)[1]
        colours = [html.COLOURS[i % len(html.COLOURS)] for i in first]
        axes.scatter(fit.data.x[:, variable], 100 * np.expm1(fit.residuals), s=14, c=colours)
        html.logarithmic(axes, "x")
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set(xlabel=name, ylabel="measured over predicted, %")
    return figure


def _read_metric(run: Path, name: str) -> tuple[list[int], list[float]]:
    lines = [line for line in files.read_lines(run / "metrics.jsonl") if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=AXIS_LABELS.get(x, x), ylabel=AXIS_LABELS.get(y, y))
    axes.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
