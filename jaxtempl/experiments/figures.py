"""Draw the paper's Figures 4 to 6: savings by week, times of both groups by model, and savings by accuracy."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from jaxtempl.experiments.estimators import Estimate
from jaxtempl.experiments.lifetime import ModelTimes, WeekTimes
from jaxtempl.experiments.templates import TemplatePoint
from jaxtempl.reports import html

GREY = "#888888"
GROUPS = {"holdout": html.ORANGE, "treatment": html.BLUE}


def weekly_savings(weeks: Sequence[WeekTimes]) -> Figure:
    """Draw the saving of each week with its interval (Figure 4)."""
    known = [(week, week.times.saving) for week in weeks if week.times]
    with html.drawing() as (figure, axes):
        _points(axes, [_monday(week) for week, _ in known], [saving for _, saving in known], html.BLUE)
        axes.axhline(0, color=GREY, linewidth=1)
        _dates(axes)
        axes.set(ylabel="holdout minus treatment, s")
    return figure


def group_times(weeks: Sequence[WeekTimes], models: Sequence[ModelTimes]) -> Figure:
    """Draw the times of both groups by week, and their means over each model's life (Figure 5)."""
    with html.drawing() as (figure, axes):
        for group, colour in GROUPS.items():
            known = [(_monday(week), getattr(week.times, group).value) for week in weeks if week.times]
            axes.plot(*zip(*known, strict=True), color=colour, linewidth=0.8, alpha=0.5) if known else None
            for model in models:
                days = [_monday(week) for week in weeks if week.version == model.version]
                if days:
                    found: Estimate = getattr(model.times, group)
                    axes.fill_between([days[0], days[-1]], found.low, found.high, color=colour, alpha=0.25, linewidth=0)
                    axes.plot([days[0], days[-1]], [found.value] * 2, color=colour, linewidth=2)
                    if group == "treatment":
                        axes.annotate(model.version, (days[0], found.value), xytext=(2, 4), textcoords="offset points")
        axes.plot([], [], color=GROUPS["holdout"], label="holdout")
        axes.plot([], [], color=GROUPS["treatment"], label="with suggestions")
        _dates(axes)
        axes.set(ylabel="selection time, s", ylim=(0, None))
        axes.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def template_savings(points: Sequence[TemplatePoint]) -> Figure:
    """Draw the saving of each template against its accuracy; areas are numbers of choices (Figure 6)."""
    volume = np.array([point.holdout + point.treatment for point in points])
    with html.drawing() as (figure, axes):
        axes.scatter(
            [point.accuracy for point in points],
            [point.saving for point in points],
            s=4 + 150 * volume / volume.max(),
            color=html.BLUE,
            alpha=0.5,
            linewidth=0,
        )
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set(xlabel="accuracy in the holdout", ylabel="holdout minus treatment, s")
    return figure


def _points(axes: Axes, at: Sequence[date], found: Sequence[Estimate], colour: str) -> None:
    values = np.array([(one.value, one.value - one.low, one.high - one.value) for one in found]).reshape(-1, 3)
    style: Any = {"fmt": "o", "markersize": 4, "linewidth": 1, "color": colour}
    axes.errorbar(list(at), values[:, 0], yerr=values[:, 1:].T, **style)


def _monday(week: WeekTimes) -> date:
    return date.fromisoformat(week.week)


def _dates(axes: Axes) -> None:
    locator = AutoDateLocator(maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
