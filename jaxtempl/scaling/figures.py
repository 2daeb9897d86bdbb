"""The pictures of a study, in the paper's order (its Figures 3, 8 and 9), and those it has not."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxtempl import files
from jaxtempl.reports import html
from jaxtempl.scaling import table3
from jaxtempl.scaling.laws import data
from jaxtempl.scaling.laws.analysis import Finding, Findings
from jaxtempl.scaling.laws.data import Row
from jaxtempl.scaling.laws.summaries import named

MARKERS = "os^Dv"
STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 4, 1, 4, 1, 4)), (0, (9, 3)))  # of corpora
COMPUTE = {
    "flops_all": "6 N D, N all parameters",
    "flops_body": "6 N D, N without tables and head",
    "flops_exact": "all matrix products counted",
}
AXES = {
    "tokens": "tokens of adaptation",
    "domain_loss": "language-model loss on the domain, nats a token",
    "general_loss": "loss on other text, nats a token",
    "exam_likeliest_top1": "share of contexts",
    "loss": "classification loss, nats",
    "top1": "top-1",
    "top3": "top-3",
    "top5": "top-5",
    **{name: f"operations of adaptation ({said})" for name, said in COMPUTE.items()},
}


class Drawer:
    """Draws one study.

    Args:
        rows: of its results.
        found: what its laws say.
    """

    def __init__(self, rows: Sequence[Row], found: Findings) -> None:
        self.rows, self.found = data.comparable(rows), found
        self.labels = data.main_labels(self.rows)
        self._curves = data.curves(self.rows, self.labels)
        self._sizes = data.sizes(self.rows)
        self._corpora = list({row["corpus"]: None for row in self.rows if row["corpus"]})

    def against(self, x: str, y: str) -> Figure:
        """One curve a size and corpus; what was not adapted is a level line where it can be no point of the curve."""
        with html.drawing() as (figure, axes):
            for (size, corpus), rows in self._curves.items():
                self._curve(axes, rows, x, y, self._name(size, corpus), self._look(size, corpus))
            if x != "domain_loss":
                self._levels(axes, y)
                html.logarithmic(axes, "x")
            _finish(axes, x, y)
        return figure

    def _curve(self, axes: Axes, rows: Sequence[Row], x: str, y: str, name: str, look: dict[str, Any]) -> None:
        """Means over seeds; hollow where the adaptation never came to its end."""
        kept = [row for row in rows if row[x] and row[y] is not None]
        places = sorted({row[x] for row in kept})
        means = [np.mean([row[y] for row in kept if row[x] == place]) for place in places]
        whole = all(row["finished"] for row in kept)
        partial: dict[str, Any] = {} if whole else {"markerfacecolor": "none"}
        axes.plot(places, means, label=name + (" (part of a curve)" if partial else ""), **look, **partial)

    def _levels(self, axes: Axes, y: str) -> None:
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

    def _look(self, size: str, corpus: str) -> dict[str, Any]:
        marker = MARKERS[self._sizes.index(size) % len(MARKERS)]
        style = STYLES[self._corpora.index(corpus) % len(STYLES)]
        return {"color": self._colour(size), "marker": marker, "markersize": 4, "linewidth": 1.2, "linestyle": style}

    def _name(self, size: str, corpus: str) -> str:
        return f"{size}, {corpus}" if len(self._corpora) > 1 else size

    def loss_to_loss(self) -> Figure:
        """Figure 3c with its lines."""
        figure = self.against("domain_loss", "loss")
        (axes,) = figure.axes
        pair = self.found.loss_to_loss
        ends, height = np.array(axes.get_xlim()), axes.get_ylim()
        for size, line in pair.by_size.items():
            axes.plot(ends, line.at(ends), color=self._colour(size), linewidth=0.8, alpha=0.6, zorder=1)
        if pair.pooled:
            axes.plot(ends, pair.pooled.at(ends), color="#888888", linewidth=1, linestyle="--", zorder=1)
        axes.set(xlim=ends, ylim=height)
        return figure

    def learning(self, run: Callable[[str, str], Path], which: str) -> Figure | None:
        """Figure 9: loss by step, of each update or at checkpoints.

        Args:
            run: the folder of a size's adaptation to a corpus.
            which: `loss` or `validation_loss`.
        """
        drawn = {key: _logged(run(*key), which) for key in self._curves}
        if not any(steps for steps, _ in drawn.values()):
            return None
        with html.drawing() as (figure, axes):
            for key, (steps, losses) in drawn.items():
                look = self._look(*key)
                look["marker"] = "" if which == "loss" else look["marker"]
                axes.plot(steps, losses, label=self._name(*key), **look)
            _finish(axes, "step of the adaptation", "loss, nats a token")
        return figure

    def by_labels(self, y: str) -> Figure:
        """Label-count curves: adapted to the end, solid, and not adapted, dotted."""
        with html.drawing() as (figure, axes):
            for size in self._sizes:
                own = [row for row in self.rows if row["size"] == size]
                last = [row for row in own if row["start"] == "adapted" and row["adapt_step"] == row["adapt_steps"]]
                base = [row for row in own if row["start"] == "base"]
                look = self._look(size, self._corpora[0] if self._corpora else "")
                self._curve(axes, last, "labels", y, f"{size}, adapted", look)
                self._curve(axes, base, "labels", y, f"{size}, not adapted", look | {"linestyle": ":"})
            html.logarithmic(axes, "x")
            _finish(axes, "labels", y)
        return figure

    def uplift(self, gains: Mapping[str, tuple[float, float]]) -> Figure:
        """What adapting adds to top-1 by size, beside the paper's own points.

        Args:
            gains: parameters, and points of top-1, by size.
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
            axes.axhline(0, color="#888888", linewidth=1)
            _finish(axes, "parameters, all of them", "points of top-1 that adapting adds")
        return figure

    def worth(self) -> Figure:
        """How many times the general tokens each size needs."""
        with html.drawing() as (figure, axes):
            for worth, colour in zip(self.found.worth, html.COLOURS, strict=False):
                sizes = sorted(worth.ratio.by_size)
                ratios = [worth.ratio.by_size[size].value for size in sizes]
                axes.plot(sizes, ratios, color=colour, marker="o", label=f"{worth.special} over {worth.general}")
                least = [size for size in sizes if worth.ratio.by_size[size].at_least]
                axes.plot(least, [worth.ratio.by_size[size].value for size in least], "^", color=colour, markersize=10)
            html.logarithmic(axes, "x")
            html.logarithmic(axes, "y")
            axes.axhline(1, color="#888888", linewidth=1)
            _finish(axes, "parameters without tables and head", "tokens that the other corpus needs, times")
        return figure

    def forgetting(self) -> Figure:
        """General loss against domain loss as the adaptation goes on."""
        return self.against("domain_loss", "general_loss")


def law(finding: Finding) -> Figure:
    """What was measured against what a law says."""
    fit = finding.fit
    with html.drawing() as (figure, axes):
        said = np.exp(fit.law.log(fit.theta, fit.data.x)[0])
        axes.scatter(said, fit.data.y, s=14, color=html.BLUE)
        ends = [min(said.min(), fit.data.y.min()), max(said.max(), fit.data.y.max())]
        axes.plot(ends, ends, color="#888888", linewidth=1)
        axes.set(xlabel=f"{named(finding.quantity)}, by the law", ylabel="as measured")
    return figure


def _logged(run: Path, name: str) -> tuple[list[int], list[float]]:
    lines = [line for line in files.read_lines(run / "metrics.jsonl") if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=AXES.get(x, x), ylabel=AXES.get(y, y))
    axes.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
