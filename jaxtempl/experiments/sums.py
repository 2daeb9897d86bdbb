"""The sums that `aggregate` reduces an export to, from which all figures of experiments are computed.

Dims: P rows of pairs, T rows of templates, N rows of either.
"""

from datetime import date, timedelta
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Counts = Int[np.ndarray, " N"]
Measures = Float[np.ndarray, " N"]


class PairSums(NamedTuple):
    """Sums of each pair of advocate and case, by day and by what it was assigned to.

    Rows are unique in the first six columns and ordered by `pair`. A pair that was in one arm, on one day and with one
    model has one row. All columns have shape [P].

    Attributes:
        pair: Index of the pair, from 0.
        advocate: Index in `Aggregate.advocates`.
        experiment: Index in `Aggregate.experiments`.
        arm: Index in `Aggregate.arms`.
        version: Index in `Aggregate.versions`; in the holdout, the model that was withheld.
        day: Day of the suggestions in UTC, in days since 1970-01-01; see `weeks`.
        suggestions: Number of suggestions, with or without a reply.
        unopened: Replies without an `opened`.
        early: Replies before their `opened`.
        ahead: Suggestions with an event that is over 2 s ahead of the server's clock.
        replies: Replies with a time: templates and own words.
        reply_seconds: Sum of the times of `replies`, in seconds.
        reply_squares: Sum of their squares.
        capped_reply_seconds: Sum of these times, each at most the cap.
        selections: Replies with a time that are a template.
        seconds: Sum of the selection times, in seconds.
        squares: Sum of their squares.
        capped_seconds: Sum of the selection times, each at most the cap.
        capped_squares: Sum of the squares of these.
        over_cap: Selections that took longer than the cap.
        hits_1: Selections of the first suggestion.
        hits_3: Selections of one of the first three suggestions.
        hits_5: Selections of one of the first five suggestions.
        first: First opening, in seconds since 1970; NaN if there is none.
        last: Last reply, in seconds since 1970; NaN if there is none. Case time is from `first` to `last`.
    """

    pair: Counts
    advocate: Counts
    experiment: Counts
    arm: Counts
    version: Counts
    day: Counts
    suggestions: Counts
    unopened: Counts
    early: Counts
    ahead: Counts
    replies: Counts
    reply_seconds: Measures
    reply_squares: Measures
    capped_reply_seconds: Measures
    selections: Counts
    seconds: Measures
    squares: Measures
    capped_seconds: Measures
    capped_squares: Measures
    over_cap: Counts
    hits_1: Counts
    hits_3: Counts
    hits_5: Counts
    first: Measures
    last: Measures

    def take(self, rows: np.ndarray) -> "PairSums":
        """Return some rows, by their indices or by a mask."""
        return PairSums(*(column[rows] for column in self))


class SelectionSums(NamedTuple):
    """Sums of the selections of each template by each advocate, over all days. All columns have shape [T].

    Attributes:
        advocate: Index in `Aggregate.advocates`.
        experiment: Index in `Aggregate.experiments`.
        arm: Index in `Aggregate.arms`.
        version: Index in `Aggregate.versions`.
        template: Index in `Aggregate.templates`.
        selections: As in `PairSums`, and so are all that follow.
        seconds: Sum of the selection times.
        capped_seconds: Sum of the capped selection times.
        hits_1: Selections of the first suggestion.
        hits_3: Selections of one of the first three suggestions.
        hits_5: Selections of one of the first five suggestions.
    """

    advocate: Counts
    experiment: Counts
    arm: Counts
    version: Counts
    template: Counts
    selections: Counts
    seconds: Measures
    capped_seconds: Measures
    hits_1: Counts
    hits_3: Counts
    hits_5: Counts


class Aggregate(NamedTuple):
    """The sums of an export, and the names that their columns index.

    Attributes:
        pairs: Sums by pair and day.
        templates_chosen: Sums by template and advocate.
        advocates: Ids of the advocates.
        experiments: Names of the experiments: tests, and `holdout` outside of them.
        arms: Names of the arms.
        versions: Versions of the models.
        templates: Ids of the templates that were chosen.
        unassigned: Suggestions without an arm.
        cap: Cap on times in seconds; None if there is none, and capped sums equal the others.
    """

    pairs: PairSums
    templates_chosen: SelectionSums
    advocates: tuple[str, ...]
    experiments: tuple[str, ...]
    arms: tuple[str, ...]
    versions: tuple[str, ...]
    templates: tuple[str, ...]
    unassigned: int
    cap: float | None


def weeks(days: Counts) -> Counts:
    """Return the week of each day since 1970-01-01, which is in week 0; weeks begin on Mondays."""
    return (days + 3) // 7


def week_begin(week: int) -> date:
    """Return the Monday of a week of `weeks`."""
    return date(1970, 1, 1) + timedelta(days=7 * week - 3)
