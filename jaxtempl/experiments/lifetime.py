"""Estimate what suggestions are worth over the system's life: by week, model and template, and in agreement.

The holdout is compared with all other pairs, the treatment. A saving is the mean time of the holdout minus that of the
treatment, so a positive one is a gain. All intervals are clustered by advocate.

Dims: R rows, G advocates.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtempl.errors import UserError
from jaxtempl.experiments import estimators
from jaxtempl.experiments.estimators import ClusterSums, Estimate, sums_by_cluster

PAPER_SAVING, PAPER_SHARE = 7.38, 0.0356  # seconds a selection, and the share of case time that they are (section 5.2)


class WeekRows(NamedTuple):
    """Sums of selections; a row is an advocate, a group, a week and a model version.

    Attributes:
        advocate: Advocate, from 0.
        held: Whether the pairs are held out.
        week: Week, from 0.
        version: Model version, from 0.
        selections: Number of selections.
        seconds: Sum of their times.
    """

    advocate: Int[np.ndarray, " R"]
    held: Bool[np.ndarray, " R"]
    week: Int[np.ndarray, " R"]
    version: Int[np.ndarray, " R"]
    selections: Float[np.ndarray, " R"]
    seconds: Float[np.ndarray, " R"]


class TemplateRows(NamedTuple):
    """Sums of selections; a row is an advocate, a group and a template.

    Attributes:
        advocate: Advocate, from 0.
        held: Whether the pairs are held out.
        template: Template, from 0.
        selections: Number of selections.
        seconds: Sum of their times.
        agreed: Number whose template is among the five that were shown or withheld.
    """

    advocate: Int[np.ndarray, " R"]
    held: Bool[np.ndarray, " R"]
    template: Int[np.ndarray, " R"]
    selections: Float[np.ndarray, " R"]
    seconds: Float[np.ndarray, " R"]
    agreed: Float[np.ndarray, " R"]


class CaseRows(NamedTuple):
    """Sums of pairs; a row is an advocate and a group.

    Attributes:
        advocate: Advocate, from 0.
        held: Whether the pairs are held out.
        pairs: Number of pairs.
        selections: Number of their selections.
        seconds: Sum of their case times, from the first suggestion to the last event.
    """

    advocate: Int[np.ndarray, " R"]
    held: Bool[np.ndarray, " R"]
    pairs: Float[np.ndarray, " R"]
    selections: Float[np.ndarray, " R"]
    seconds: Float[np.ndarray, " R"]


class Lifetime(NamedTuple):
    """The sums that the report reads.

    Attributes:
        weeks: First day of each week, in ISO 8601.
        versions: Model versions, by their first suggestion.
        templates: Template ids.
        by_week: Selections by week and version.
        by_template: Selections by template.
        cases: Pairs.
    """

    weeks: list[str]
    versions: list[str]
    templates: list[str]
    by_week: WeekRows
    by_template: TemplateRows
    cases: CaseRows


class Compared(NamedTuple):
    """Mean times of both groups, in seconds, and their difference: the saving."""

    holdout: Estimate
    treatment: Estimate
    saving: Estimate


class WeekTimes(NamedTuple):
    """Times of a week (Figure 4); None where a group has too few advocates for an interval.

    Attributes:
        week: First day.
        version: Version of most selections.
        times: Times of both groups.
    """

    week: str
    version: str
    times: Compared | None


class ModelTimes(NamedTuple):
    """Times over the weeks in which both groups have a model (Figure 5).

    Attributes:
        version: Version.
        weeks: Number of the weeks.
        times: Times of both groups.
    """

    version: str
    weeks: int
    times: Compared


class Worth(NamedTuple):
    """Time that suggestions save.

    Attributes:
        selection: Seconds a selection.
        case: Seconds a case: the saving a selection times the treatment's selections a case.
        case_share: Share of the case time: the saving over the treatment's case time a selection plus the saving.
        paper_share: The saving by the paper's arithmetic, in which 7.38 s are 3.56 % of case time.
        case_time: Difference of the groups' measured case times, in seconds; it needs no assumption, and is less exact.
    """

    selection: Estimate
    case: Estimate
    case_share: Estimate
    paper_share: float
    case_time: Estimate


class InducedAgreement(NamedTuple):
    """How often the chosen template is among the five that were shown or withheld.

    Attributes:
        holdout: Share in the holdout: the acceptance counterfactual.
        treatment: Share where the five were shown.
        induced: Treatment minus holdout: the share of the labels that agree because they were shown.
        ratio: Logarithm of treatment over holdout.
        followed: Share of the choices that would not have agreed, and agree because the five were shown.
    """

    holdout: Estimate
    treatment: Estimate
    induced: Estimate
    ratio: Estimate
    followed: Estimate


def weekly_times(found: Lifetime) -> Iterator[WeekTimes]:
    """Yield the times of each week (Figure 4)."""
    rows = found.by_week
    for number, week in enumerate(found.weeks):
        kept = rows.week == number
        volume = np.bincount(rows.version[kept], rows.selections[kept], len(found.versions))
        yield WeekTimes(week, found.versions[int(volume.argmax())], _compared(_time_sums(rows, kept)))


def model_times(found: Lifetime) -> Iterator[ModelTimes]:
    """Yield the times over the life of each model that both groups had (Figure 5)."""
    rows = found.by_week
    for number, version in enumerate(found.versions):
        ours = rows.version == number
        weeks = np.intersect1d(rows.week[ours & rows.held], rows.week[ours & ~rows.held])
        times = _compared(_time_sums(rows, ours & np.isin(rows.week, weeks)))
        if times:
            yield ModelTimes(version, len(weeks), times)


def saved(found: Lifetime) -> Worth:
    """Return the time that suggestions save a selection and a case, and as a share of case time.

    The case time of the treatment plus the saving estimates the case time without suggestions with less variance than
    the small holdout's does.

    Raises:
        UserError: A group has selections of fewer than two advocates.
    """
    times, cases = _time_sums(found.by_week), found.cases
    saving = estimators.difference(times)
    volumes = sums_by_cluster(cases.selections, cases.advocate, cases.held.astype(int), cases.pairs)
    lengths = sums_by_cluster(cases.seconds, cases.advocate, cases.held.astype(int), cases.selections)
    by_pair = sums_by_cluster(cases.seconds, cases.advocate, cases.held.astype(int), cases.pairs)
    ratios = _columns([(times, 1), (times, 0), (volumes, 0), (lengths, 0)])
    seconds, (picks, length) = saving.value, (ratios.totals.sum(0) / ratios.weights.sum(0))[2:]
    whole = length + seconds
    by_time = length / whole**2
    return Worth(
        saving,
        estimators.combination(ratios, seconds * picks, np.array([picks, -picks, seconds, 0])),
        estimators.combination(ratios, seconds / whole, np.array([by_time, -by_time, 0, -seconds / whole**2])),
        seconds * PAPER_SHARE / PAPER_SAVING,
        estimators.difference(by_pair),
    )


def agreement(found: Lifetime) -> InducedAgreement:
    """Return how often the chosen template is among the five, shown and withheld.

    Raises:
        UserError: A group has selections of fewer than two advocates, or all choices of the holdout agree.
    """
    rows = found.by_template
    both = sums_by_cluster(rows.agreed, rows.advocate, (~rows.held).astype(int), rows.selections)
    if (both.totals[:, 0] >= both.weights[:, 0]).all():
        raise UserError("all choices of the holdout are among the withheld five, so nothing is left to induce")
    withheld, shown = (estimators.mean(_columns([(both, arm)])) for arm in (0, 1))
    rest = 1 - withheld.value
    followed = (shown.value - withheld.value) / rest
    gradient = np.array([-(1 - shown.value) / rest**2, 1 / rest])
    return InducedAgreement(
        withheld,
        shown,
        estimators.difference(both),
        estimators.log_ratio(both),
        estimators.combination(both, followed, gradient),
    )


def _time_sums(rows: WeekRows, kept: Bool[np.ndarray, " R"] | None = None) -> ClusterSums:
    """Return the sums of times by advocate; the first arm is the treatment, the second the holdout."""
    weights = rows.selections if kept is None else rows.selections * kept
    seconds = rows.seconds if kept is None else rows.seconds * kept
    return sums_by_cluster(seconds, rows.advocate, rows.held.astype(int), weights)


def _columns(parts: list[tuple[ClusterSums, int]]) -> ClusterSums:
    """Return ratios as the arms of one set of sums; advocates of any part are clusters."""
    clusters = max(len(sums.totals) for sums, _ in parts)
    totals, weights = np.zeros((clusters, len(parts))), np.zeros((clusters, len(parts)))
    for column, (sums, arm) in enumerate(parts):
        totals[: len(sums.totals), column] = sums.totals[:, arm]
        weights[: len(sums.weights), column] = sums.weights[:, arm]
    return ClusterSums(totals, weights)


def _compared(sums: ClusterSums) -> Compared | None:
    """Return the times of both groups, or None where one has too few advocates for an interval."""
    try:
        holdout, treatment = (estimators.mean(_columns([(sums, arm)])) for arm in (1, 0))
        return Compared(holdout, treatment, estimators.difference(sums))
    except UserError:
        return None
