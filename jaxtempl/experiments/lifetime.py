"""Estimate what suggestions are worth over the system's life: by week, model and template, and in agreement.

The holdout is compared with all other pairs, the treatment. A saving is the mean time of the holdout minus that of the
treatment, so a positive one is a gain. All intervals are clustered by advocate.

Dims: P rows of pairs, G advocates.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxtempl.errors import UserError
from jaxtempl.experiments import estimators
from jaxtempl.experiments.estimators import ClusterSums, Estimate, sums_by_cluster
from jaxtempl.experiments.sums import Aggregate, Counts, PairSums, week_begin, weeks
from jaxtempl.serve.experiments.definition import HOLDOUT

PAPER_SAVING, PAPER_SHARE = 7.38, 0.0356  # seconds a selection, and the share of case time that they are (section 5.2)


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


def is_held(found: Aggregate, arms: Counts) -> Bool[np.ndarray, " N"]:
    """Return which rows are of the holdout.

    Raises:
        UserError: No row is, or every one is.
    """
    held = np.array([name == HOLDOUT for name in found.arms])[arms]
    if held.all() or not held.any():
        raise UserError(
            f"the events have the arms {', '.join(found.arms)}; the report compares a holdout with other pairs: "
            "serve with a holdout in --experiments, or use bin/experiment analyse for a test"
        )
    return held


def weekly_times(found: Aggregate) -> Iterator[WeekTimes]:
    """Yield the times of each week (Figure 4).

    Raises:
        UserError: As for `is_held`.
    """
    rows, held, week = found.pairs, is_held(found, found.pairs.arm), weeks(found.pairs.day)
    for number in np.unique(week):
        kept = week == number
        volume = np.bincount(rows.version[kept], rows.selections[kept])
        monday, version = week_begin(int(number)).isoformat(), found.versions[int(volume.argmax())]
        yield WeekTimes(monday, version, _compared(_time_sums(rows, held, kept)))


def model_times(found: Aggregate) -> Iterator[ModelTimes]:
    """Yield the times over the life of each model that both groups had, in the order of release (Figure 5).

    Raises:
        UserError: As for `is_held`.
    """
    rows, held, week = found.pairs, is_held(found, found.pairs.arm), weeks(found.pairs.day)
    released = {int(version): rows.day[rows.version == version].min() for version in np.unique(rows.version)}
    for version in sorted(released, key=lambda one: released[one]):
        ours = rows.version == version
        common = np.intersect1d(week[ours & held], week[ours & ~held])
        times = _compared(_time_sums(rows, held, ours & np.isin(week, common)))
        if times:
            yield ModelTimes(found.versions[version], len(common), times)


def saved(found: Aggregate) -> Worth:
    """Return the time that suggestions save a selection and a case, and as a share of case time.

    The case time of the treatment plus the saving estimates the case time without suggestions with less variance than
    the small holdout's does. A case's time is from the first opening to the last reply of each of its days.

    Raises:
        UserError: A group has selections of fewer than two advocates, or as for `is_held`.
    """
    rows, held = found.pairs, is_held(found, found.pairs.arm)
    times = _time_sums(rows, held, np.ones(len(held), bool))
    saving = estimators.difference(times)
    lengths, groups = np.maximum(np.nan_to_num(rows.last - rows.first), 0), held.astype(int)
    first_row = np.diff(rows.pair, prepend=-1) != 0  # a pair of several days counts once
    volumes = sums_by_cluster(rows.selections.astype(float), rows.advocate, groups, first_row)
    by_selection = sums_by_cluster(lengths, rows.advocate, groups, rows.selections)
    ratios = _columns([(times, 1), (times, 0), (volumes, 0), (by_selection, 0)])
    seconds, (picks, length) = saving.value, (ratios.totals.sum(0) / ratios.weights.sum(0))[2:]
    whole = length + seconds
    by_time = length / whole**2
    return Worth(
        saving,
        estimators.combination(ratios, seconds * picks, np.array([picks, -picks, seconds, 0])),
        estimators.combination(ratios, seconds / whole, np.array([by_time, -by_time, 0, -seconds / whole**2])),
        seconds * PAPER_SHARE / PAPER_SAVING,
        estimators.difference(sums_by_cluster(lengths, rows.advocate, groups, first_row)),
    )


def agreement(found: Aggregate) -> InducedAgreement:
    """Return how often the chosen template is among the five, shown and withheld.

    Raises:
        UserError: All choices of the holdout agree, or as for `saved`.
    """
    rows, held = found.pairs, is_held(found, found.pairs.arm)
    both = sums_by_cluster(rows.hits_5.astype(float), rows.advocate, (~held).astype(int), rows.selections)
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


def _time_sums(rows: PairSums, held: Bool[np.ndarray, " P"], kept: Bool[np.ndarray, " P"]) -> ClusterSums:
    """Return the sums of times by advocate; the first arm is the treatment, the second the holdout."""
    return sums_by_cluster(rows.seconds * kept, rows.advocate, held.astype(int), rows.selections * kept)


def _columns(parts: list[tuple[ClusterSums, int]]) -> ClusterSums:
    """Return single arms of several sums, which have the same clusters, as the arms of one."""
    totals, weights = zip(*((sums.totals[:, arm], sums.weights[:, arm]) for sums, arm in parts), strict=True)
    return ClusterSums(np.column_stack(totals), np.column_stack(weights))


def _compared(sums: ClusterSums) -> Compared | None:
    """Return the times of both groups, or None where one has too few advocates for an interval."""
    try:
        holdout, treatment = (estimators.mean(_columns([(sums, arm)])) for arm in (1, 0))
        return Compared(holdout, treatment, estimators.difference(sums))
    except UserError:
        return None
