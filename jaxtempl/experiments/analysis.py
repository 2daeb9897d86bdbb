"""Analyse an A/B test: estimates of every kind, looks at each day, and the verdict in a sentence.

All estimates are the second arm minus the first. The headline is the difference of mean selection times clustered by
advocate; with fewer than `FEW_CLUSTERS` effective advocates, the p-value is that of re-randomised pairs.
"""

import math
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxtempl.errors import UserError
from jaxtempl.experiments import estimators, sequential
from jaxtempl.experiments.checks import Check
from jaxtempl.experiments.comparison import ComparedPairs, cluster_sums
from jaxtempl.experiments.estimators import ClusterSums, Cuped, Estimate, Sample
from jaxtempl.experiments.randomization import RandomizationTest, rerandomize
from jaxtempl.experiments.sums import PairSums
from jaxtempl.specs.interval import Interval

FEW_CLUSTERS = 40  # effective advocates, below which clustered intervals reject too often
ALPHA = 0.05
ValueT = TypeVar("ValueT")


class TimeEstimates(NamedTuple):
    """Comparisons of the selection times of two arms, raw or capped.

    Attributes:
        means: Mean of each arm, in seconds.
        by_advocate: Difference of means, clustered by advocate.
        by_pair: Difference of means, clustered by pair.
        naive_welch: Welch's test, which takes every selection as independent.
        log_ratio: Logarithm of the ratio of means, clustered by advocate.
        cuped: Difference adjusted by the advocates' earlier means; None without an earlier period.
        rerandomization: Re-randomisation test of pairs, the unit of assignment.
    """

    means: tuple[float, float]
    by_advocate: Estimate
    by_pair: Estimate
    naive_welch: Estimate
    log_ratio: Estimate
    cuped: Cuped | None
    rerandomization: RandomizationTest


class ArmCounts(NamedTuple):
    """Size and use of one arm; the hits are shares of its selections."""

    arm: str
    pairs: int
    advocates: int
    suggestions: int
    replies: int
    selections: int
    template_use: float
    over_cap: int


class Look(NamedTuple):
    """The estimate of all data up to the end of a day.

    Attributes:
        day: Day in UTC.
        value: Difference of means.
        low: Lower bound of the confidence sequence.
        high: Upper bound of the confidence sequence.
        fixed_low: Lower bound of the interval that holds for a single look.
        fixed_high: Upper bound of that interval.
    """

    day: str
    value: float
    low: float
    high: float
    fixed_low: float
    fixed_high: float


class ABAnalysis(NamedTuple):
    """The analysis of a test, as `report.json` holds it.

    Attributes:
        experiment: Name of the experiment.
        arms: The compared arms, the baseline first.
        days: First and last day with suggestions.
        verdict: The result in a sentence.
        withheld: Reason for which there is no verdict; None if there is one.
        checks: Checks that came before.
        counts: Size of each arm.
        effective_advocates: Number of equal advocates with the same sum of squared selections (Kish 1965).
        headline: `by_advocate`, or `rerandomization` with few effective advocates.
        raw: Estimates of selection times.
        cap_seconds: Cap that the experiments file declares; None without.
        capped: Estimates of capped selection times; None without a cap.
        template_use: Difference of the shares of replies that are templates, clustered by advocate.
        reply_time: Difference of the mean times of all replies, clustered by advocate.
        holdout_top: Share of the holdout's selections among the first 1, 3 and 5 withheld suggestions, by advocate.
        planned_se: Standard error that the confidence sequence is narrowest at.
        looks: One look a day.
        crossed: First day whose confidence sequence excludes zero; None if none does.
        notes: Reasons for which parts of the analysis are missing.
    """

    experiment: str
    arms: tuple[str, str]
    days: tuple[str, str]
    verdict: str
    withheld: str | None
    checks: list[Check]
    counts: list[ArmCounts]
    effective_advocates: float
    headline: str
    raw: TimeEstimates
    cap_seconds: float | None
    capped: TimeEstimates | None
    template_use: Estimate | None
    reply_time: Estimate
    holdout_top: dict[str, Interval] | None
    planned_se: float
    looks: list[Look]
    crossed: str | None
    notes: list[str]


def analyse(
    comparison: ComparedPairs, checks: list[Check], end: datetime | None = None, planned_se: float | None = None
) -> ABAnalysis:
    """Return the analysis of a test.

    Args:
        comparison: Its pairs.
        checks: Its checks.
        end: End of the test; a verdict needs events up to it. None takes the export as complete.
        planned_se: Standard error expected at the end, in seconds (default: that of the first look, over the square
            root of the number of days).

    Raises:
        UserError: An arm has fewer than two advocates or pairs with a selection, or times have no variance.
    """
    rows, notes = comparison.compared, list[str]()
    by_advocate = cluster_sums(rows, "seconds")
    raw = _estimates(comparison, "seconds", "squares", notes)
    cap = comparison.cap
    looks, planned = _looks(rows, planned_se)
    effective = estimators.effective_clusters(by_advocate)
    headline = "by_advocate" if effective >= FEW_CLUSTERS else "rerandomization"
    withheld = _reason_to_withhold(checks, comparison.last_day, end)
    crossed = next((look.day for look in looks if look.low > 0 or look.high < 0), None)
    arms = (comparison.arms[0], comparison.arms[1])
    return ABAnalysis(
        experiment=comparison.experiment,
        arms=arms,
        days=(_day(rows.day.min()), _day(rows.day.max())),
        verdict=f"No verdict: {withheld}." if withheld else _verdict(arms, raw, headline, effective),
        withheld=withheld,
        checks=checks,
        counts=[_counts(arm, rows.take(rows.arm == i)) for i, arm in enumerate(arms)],
        effective_advocates=effective,
        headline=headline,
        raw=raw,
        cap_seconds=cap,
        capped=None if cap is None else _estimates(comparison, "capped_seconds", "capped_squares", []),
        template_use=_optional(
            "template use", lambda: estimators.difference(cluster_sums(rows, "selections", "replies")), notes
        ),
        reply_time=estimators.difference(cluster_sums(rows, "reply_seconds", "replies")),
        holdout_top=_optional("holdout", lambda: _holdout_top(comparison.held), notes),
        planned_se=planned,
        looks=looks,
        crossed=crossed,
        notes=notes,
    )


def _estimates(comparison: ComparedPairs, total: str, squares: str, notes: list[str]) -> TimeEstimates:
    rows = comparison.compared
    by_advocate, by_pair = cluster_sums(rows, total), cluster_sums(rows, total, by="pair")
    earlier = comparison.earlier[np.unique(rows.advocate)]
    means = by_advocate.totals.sum(0) / by_advocate.weights.sum(0)
    return TimeEstimates(
        means=(float(means[0]), float(means[1])),
        by_advocate=estimators.difference(by_advocate),
        by_pair=estimators.difference(by_pair),
        naive_welch=estimators.naive_welch(*(_sample(rows.take(rows.arm == arm), total, squares) for arm in (0, 1))),
        log_ratio=estimators.log_ratio(by_advocate),
        cuped=_optional("CUPED", lambda: estimators.cuped(by_advocate, earlier), notes),
        rerandomization=_rerandomize(by_pair),
    )


def _rerandomize(by_pair: ClusterSums) -> RandomizationTest:
    """Return the test of pairs; one that was in both arms counts as two."""
    units = by_pair.weights > 0
    treated = np.broadcast_to([False, True], units.shape)
    return rerandomize(by_pair.totals[units], by_pair.weights[units], treated[units])


def _sample(rows: PairSums, total: str, squares: str) -> Sample:
    n = int(rows.selections.sum())
    mean = float(getattr(rows, total).sum()) / n
    return Sample(n, mean, (float(getattr(rows, squares).sum()) - n * mean**2) / (n - 1))


def _looks(rows: PairSums, planned_se: float | None) -> tuple[list[Look], float]:
    """Return one look a day, and the standard error that the sequence was planned for."""
    days, day = np.unique(rows.day, return_inverse=True)
    advocates, advocate = np.unique(rows.advocate, return_inverse=True)
    sums = [np.zeros((len(days), len(advocates), 2)) for _ in range(2)]
    for each, column in zip(sums, (rows.seconds, rows.selections), strict=True):
        np.add.at(each, (day, advocate, rows.arm), column)
    totals, weights = (each.cumsum(0) for each in sums)
    enough = np.flatnonzero(((weights > 0).sum(1) >= 2).all(1)).tolist()  # days from which on both arms have a variance
    estimates = {i: estimators.difference(ClusterSums(totals[i], weights[i])) for i in enough}
    first = next(iter(estimates))
    planned = planned_se or estimates[first].se * math.sqrt((first + 1) / len(days))
    return [_look(_day(days[i]), estimate, planned) for i, estimate in estimates.items()], planned


def _look(day: str, estimate: Estimate, planned: float) -> Look:
    sequence = sequential.confidence_sequence(estimate, planned)
    return Look(day, estimate.value, sequence.low, sequence.high, estimate.low, estimate.high)


def _counts(arm: str, rows: PairSums) -> ArmCounts:
    replies, selections = int(rows.replies.sum()), int(rows.selections.sum())
    return ArmCounts(
        arm,
        len(np.unique(rows.pair)),
        len(np.unique(rows.advocate)),
        int(rows.suggestions.sum()),
        replies,
        selections,
        selections / max(replies, 1),
        int(rows.over_cap.sum()),
    )


def _holdout_top(held: PairSums) -> dict[str, Interval]:
    """Return the accuracies in the holdout; its advocates saw no suggestion."""
    one_arm = held._replace(arm=np.zeros_like(held.arm))
    found = dict[str, Interval]()
    for k in (1, 3, 5):
        sums = cluster_sums(one_arm, f"hits_{k}")
        estimate = estimators.mean(ClusterSums(sums.totals[:, :1], sums.weights[:, :1]))
        found[f"top{k}"] = Interval(estimate.value, estimate.low, estimate.high)
    return found


def _reason_to_withhold(checks: list[Check], last_day: int, end: datetime | None) -> str | None:
    if failed := [f"{check.name} ({check.finding})" for check in checks if not check.passed]:
        return f"{len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}"
    last = date.fromisoformat(_day(last_day))
    if end is not None and last < (end - timedelta(days=1)).date():
        return f"the events end on {last} and the test on {end.date()}, and the decision is one look at its end"
    return None


def _verdict(arms: tuple[str, str], raw: TimeEstimates, headline: str, effective: float) -> str:
    found, relative = raw.by_advocate, math.expm1(raw.log_ratio.value)
    p = found.p if headline == "by_advocate" else raw.rerandomization.p
    unit = (
        "clustered by advocate"
        if headline == "by_advocate"
        else f"by re-randomised pairs, since the advocates count as {effective:.0f} equal ones"
    )
    interval = f"95 % interval {found.low:+.2f} to {found.high:+.2f} s, p = {p:.2g}, {unit}"
    if p >= ALPHA:
        return f"No difference between {arms[0]} and {arms[1]} is shown: {found.value:+.2f} s a selection ({interval})."
    word = "faster" if found.value < 0 else "slower"
    return (
        f"{arms[1]} is {word} than {arms[0]}: {raw.means[1]:.2f} s a selection instead of {raw.means[0]:.2f} s, "
        f"{found.value:+.2f} s or {relative:+.1%} ({interval})."
    )


def _optional(name: str, compute: Callable[[], ValueT], notes: list[str]) -> ValueT | None:
    """Return a value, or None where the data do not allow it, with the reason in `notes`."""
    try:
        return compute()
    except UserError as error:
        notes.append(f"{name}: {error}")
        return None


def _day(day: Any) -> str:
    return str(date(1970, 1, 1) + timedelta(days=int(day)))
