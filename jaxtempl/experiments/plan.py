"""Plan an A/B test: the traffic of an export, and the report of what a test of some days can detect.

Dims: P pairs.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from jaxtempl import files
from jaxtempl.config.experiments import ExperimentPlanConfig
from jaxtempl.errors import UserError
from jaxtempl.experiments import power
from jaxtempl.experiments.power import POWER, PowerPoint, Traffic
from jaxtempl.experiments.sums import Aggregate
from jaxtempl.reports import html
from jaxtempl.reports.html import Page

FORMAT = 1
KIND = "experiment plan"
COLUMNS = {"days": 6, "selections": 12, "standard error": 16, "detectable": 12, "power": 8}  # with their widths


class PairTimes(NamedTuple):
    """Selection times of each pair that has any.

    Attributes:
        counts: Number of times.
        totals: Their sum, in seconds.
        squares: Sum of their squares.
        arms: Arm of the pair, from 0.
    """

    counts: Float[np.ndarray, " P"]
    totals: Float[np.ndarray, " P"]
    squares: Float[np.ndarray, " P"]
    arms: Int[np.ndarray, " P"]


class Plan(NamedTuple):
    """The effects that a test of the given traffic can detect.

    Attributes:
        traffic: Interactions and pairs of the test.
        design_effect: Variance of a mean over that of as many independent interactions.
        effect: Effect to find, in seconds.
        days: Planned days.
        detectable: Minimal detectable effect after them, in seconds.
        days_needed: Days after which `effect` is found with a power of 80 %.
        curve: Precision and power by days.
    """

    traffic: Traffic
    design_effect: float
    effect: float
    days: int
    detectable: float
    days_needed: int
    curve: list[PowerPoint]


def correlation(pairs: PairTimes) -> tuple[float, float]:
    """Return the standard deviation of a time and the intra-cluster correlation of a pair, both within arms.

    The correlation is the estimator of the analysis of variance, (MSB - MSW) / (MSB + (n0 - 1) MSW), with
    n0 = (N - sum of squared sizes / N) / (P - 1) (Donner 1986, International Statistical Review 54:67).

    Raises:
        UserError: There are fewer than two pairs, no pair has two times, or all times are equal.
    """
    count, total = len(pairs.counts), float(pairs.counts.sum())
    if count < 2 or total <= count:
        raise UserError(
            f"the events have {total:g} selection times of {count} pairs; a correlation needs two or more pairs, and "
            "pairs with several times: wait for more, or pass --sd and --correlation"
        )
    means = np.bincount(pairs.arms, pairs.totals) / np.maximum(np.bincount(pairs.arms, pairs.counts), 1)
    shift = means[pairs.arms]
    deviations = pairs.totals - pairs.counts * shift
    squares = float((pairs.squares - 2 * shift * pairs.totals + pairs.counts * shift**2).sum())
    if not squares > 0:
        raise UserError("all selection times of an arm are equal, so there is no variance to plan with")
    between = float((deviations**2 / pairs.counts).sum())
    msb, msw = between / (count - 1), (squares - between) / (total - count)
    size = (total - float((pairs.counts**2).sum()) / total) / (count - 1)
    return math.sqrt(squares / (total - 1)), (msb - msw) / (msb + (size - 1) * msw)


def estimated(pairs: PairTimes, days: float, advocates: int) -> dict[str, float | int]:
    """Return the flags of `bin/experiment plan` as estimated from pairs.

    Args:
        pairs: Selection times by pair.
        days: Days that the pairs come from.
        advocates: Number of advocates.

    Raises:
        UserError: As for `correlation`.
    """
    sd, found = correlation(pairs)
    picks = float(pairs.counts.mean())
    return {
        "sd": sd,
        "correlation": found,
        "picks": picks,
        "picks_cv": float(pairs.counts.std() / picks),
        "pairs_a_day": len(pairs.counts) / days,
        "advocates": advocates,
    }


def traffic_of(found: Aggregate) -> dict[str, float | int]:
    """Return the flags of `bin/experiment plan` as estimated from an export's sums; within arms, over all its days.

    Raises:
        UserError: As for `correlation`.
    """
    rows = found.pairs
    columns = (np.bincount(rows.pair, each) for each in (rows.selections, rows.seconds, rows.squares))
    counts, totals, squares = (column.astype(float) for column in columns)
    chosen, first = counts > 0, np.unique(rows.pair, return_index=True)[1]
    times = PairTimes(counts[chosen], totals[chosen], squares[chosen], rows.arm[first][chosen])
    days = float(rows.day.max() - rows.day.min() + 1)
    return estimated(times, days, len(np.unique(rows.advocate[rows.selections > 0])))


def plan(config: ExperimentPlanConfig) -> Plan:
    """Return what the configured test can detect.

    Raises:
        UserError: A quantity is impossible, or the effect takes more than ten years.
    """
    traffic = Traffic(
        config.sd, config.correlation, config.picks, config.picks_cv, config.pairs_a_day, config.share, config.advocates
    )
    needed = power.days_needed(traffic, config.effect)
    lengths = {config.days, needed, *(round(needed * step / 8) for step in range(1, 17))} - {0}
    [planned] = power.power_curve(traffic, config.effect, [float(config.days)])
    return Plan(
        traffic,
        power.design_effect(traffic.picks, traffic.picks_cv, traffic.correlation),
        config.effect,
        config.days,
        planned.detectable,
        needed,
        power.power_curve(traffic, config.effect, sorted(map(float, lengths))),
    )


def format_plan(found: Plan) -> Iterator[str]:
    """Yield the lines of a plan for a terminal."""
    yield from summary(found)
    yield "".join(f"{name:>{width}}" for name, width in COLUMNS.items())
    for point in found.curve:
        cells = row(found, point)
        yield "".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))


def summary(found: Plan) -> Iterator[str]:
    """Yield the conclusions of a plan in sentences."""
    traffic = found.traffic
    yield (
        f"{traffic.advocates:,} advocates, {traffic.pairs_a_day:,.5g} pairs a day, {traffic.picks:.3g} selections a "
        f"pair (coefficient of variation {traffic.picks_cv:.2g}), standard deviation {traffic.sd:.3g} s, correlation "
        f"within a pair {traffic.correlation:.2g}: the design effect is {found.design_effect:.2f}."
    )
    yield f"After {found.days} days, an effect of {found.detectable:.2f} s is found with a power of {POWER:.0%}."
    yield f"An effect of {found.effect:g} s takes {found.days_needed:,} days."


def row(found: Plan, point: PowerPoint) -> list[str]:
    """Return the cells of a point of the power curve."""
    selections = found.traffic.picks * found.traffic.pairs_a_day * point.days
    return [
        f"{point.days:g}",
        f"{selections:,.0f}",
        f"{point.se:.3f} s",
        f"{point.detectable:.3f} s",
        f"{point.power:.1%}",
    ]


def write(found: Plan, out: Path) -> Path:
    """Write `report.json` and the page with the power curve, and return the page's path."""
    files.write_json(out / "report.json", {"format": FORMAT, "kind": KIND, **files.plain(found)})
    lead, *conclusions = summary(found)
    page = Page("Plan of an A/B test", " ".join(conclusions)).text(lead)
    page.figure(draw(found), f"Power for an effect of {found.effect:g} s, by the length of the test.")
    page.table(list(COLUMNS), [row(found, point) for point in found.curve], "Detectable: with a power of 80 %.")
    page.facts({"test": "two-sided t at 5 %", "effects": "equal for all advocates; others widen the interval"})
    page.write(out / "index.html")
    return out / "index.html"


def draw(found: Plan) -> Figure:
    """Draw the power curve, the wanted power and the days that it takes."""
    with html.drawing() as (figure, axes):
        days, powers = [point.days for point in found.curve], [point.power for point in found.curve]
        axes.plot(days, powers, color=html.BLUE, marker="o", markersize=4)
        axes.axhline(POWER, color="#888888", linewidth=1, linestyle="--")
        axes.axvline(found.days_needed, color="#888888", linewidth=1, linestyle="--")
        axes.annotate(f" {found.days_needed:,} days", (found.days_needed, 0.02))
        axes.set(xlabel="days", ylabel=f"power for {found.effect:g} s", ylim=(0, 1.02), xlim=(0, None))
    return figure
