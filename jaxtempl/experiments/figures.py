"""Draw the paper's Figures 4 to 6: savings by week, times of both groups by model, and savings by accuracy."""

from collections.abc import Sequence
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
GROUPS = {"holdout": ("holdout", html.ORANGE), "treatment": ("with suggestions", html.BLUE)}


def weekly_savings(weeks: Sequence[WeekTimes]) -> Figure:
    """Draw the saving of each week with its interval (Figure 4)."""
    known = [(week.week, week.times.saving) for week in weeks if week.times]
    with html.drawing() as (figure, axes):
        values = np.array([(one.value, one.value - one.low, one.high - one.value) for _, one in known]).reshape(-1, 3)
        style: Any = {"fmt": "o", "markersize": 4, "linewidth": 1, "color": html.BLUE}
        axes.errorbar(_dates([week for week, _ in known]), values[:, 0], yerr=values[:, 1:].T, **style)
        axes.axhline(0, color=GREY, linewidth=1)
        _finish(axes, "holdout minus treatment, s")
    return figure


def group_times(weeks: Sequence[WeekTimes], models: Sequence[ModelTimes]) -> Figure:
    """Draw the times of both groups by week, and their means over each model's life (Figure 5)."""
    with html.drawing() as (figure, axes):
        for group, (name, colour) in GROUPS.items():
            known = [week for week in weeks if week.times]
            means = [getattr(week.times, group).value for week in known]
            axes.plot(_dates([week.week for week in known]), means, color=colour, linewidth=0.8, alpha=0.5)
            for model in models:
                _life(axes, [week.week for week in weeks if week.version == model.version], model, group)
            axes.plot([], [], color=colour, label=name)
        _finish(axes, "selection time, s")
        axes.set(ylim=(0, None))
        axes.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _life(axes: Axes, weeks: Sequence[str], model: ModelTimes, group: str) -> None:
    """Draw the mean of a group over a model's life, with its interval."""
    if not weeks:
        return
    found: Estimate = getattr(model.times, group)
    days, colour = _dates([weeks[0], weeks[-1]]), GROUPS[group][1]
    days[-1] += np.timedelta64(7, "D")
    axes.fill_between(days, found.low, found.high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(days, [found.value] * 2, color=colour, linewidth=2)
    if group == "treatment":
        axes.annotate(model.version, (days[0], found.value), xytext=(2, 4), textcoords="offset points")


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


def _dates(weeks: Sequence[str]) -> Any:
    return np.array(weeks, "datetime64[D]")


def _finish(axes: Axes, label: str) -> None:
    locator = AutoDateLocator(maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set(ylabel=label)
