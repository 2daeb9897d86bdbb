"""Run all checks of a test on its sums."""

import numpy as np

from jaxtempl.errors import UserError
from jaxtempl.experiments import checks
from jaxtempl.experiments.checks import Check
from jaxtempl.experiments.comparison import ComparedPairs, cluster_sums
from jaxtempl.experiments.sums import PairSums, week_begin, weeks
from jaxtempl.serve.experiments.definition import HOLDOUT, Experiments


def run_checks(comparison: ComparedPairs, experiments: Experiments | None) -> list[Check]:
    """Return the checks of a test, whether they passed or not.

    Args:
        comparison: Pairs of the test.
        experiments: File of the experiments, for the share of the holdout.

    Raises:
        UserError: An arm expects fewer than five pairs, or has replies of fewer than two advocates.
    """
    rows, compared, weights = comparison.rows, comparison.compared, comparison.weights
    assigned = _assigned(rows)
    share = np.array([weights[arm] for arm in comparison.arms])
    begins = np.array([str(week_begin(int(week))) for week in weeks(assigned.day)])
    advocates = np.array(comparison.advocates)[assigned.advocate]
    replies = int(rows.replies.sum() + rows.unopened.sum() + rows.early.sum())
    return [
        checks.sample_ratio(_counts(comparison.arms, assigned), weights),
        checks.sample_ratio_within("week", begins, assigned.arm, share),
        checks.sample_ratio_within("advocate", advocates, assigned.arm, share),
        *_holdout(comparison, experiments),
        checks.reassigned_pairs(rows.pair, rows.arm),
        checks.complete_events(replies, int(rows.unopened.sum()), int(rows.early.sum())),
        checks.clock_skew(int(rows.suggestions.sum()), int(rows.ahead.sum())),
        checks.template_use(cluster_sums(compared, "selections", "replies")),
    ]


def format_checks(found: list[Check]) -> str:
    """Return the checks as an aligned table for a terminal."""
    width = max(len(check.name) for check in found)
    return "\n".join(f"{'passed' if c.passed else 'FAILED'}  {c.name:{width}}  {c.finding}" for c in found)


def refuse_failed(test: str, found: list[Check]) -> None:
    """Raise if a check failed.

    Raises:
        UserError: A check failed; the message names all that did.
    """
    if failed := [check.name for check in found if not check.passed]:
        raise UserError(
            f"{test} failed {len(failed)} of {len(found)} checks ({', '.join(failed)}): it gets no verdict until the "
            "causes are found and the test is repeated"
        )


def _assigned(rows: PairSums) -> PairSums:
    """Return the first row of each pair by time; its arm is the one that the pair was assigned to."""
    ordered = rows.take(np.lexsort((rows.first, rows.day, rows.pair)))
    return ordered.take(np.unique(ordered.pair, return_index=True)[1])


def _counts(arms: tuple[str, ...], assigned: PairSums) -> dict[str, int]:
    return dict(zip(arms, np.bincount(assigned.arm, minlength=len(arms)).tolist(), strict=True))


def _holdout(comparison: ComparedPairs, experiments: Experiments | None) -> list[Check]:
    if experiments is None or experiments.holdout is None:
        return []
    share, held = experiments.holdout.share, len(np.unique(comparison.held.pair))
    found = checks.sample_ratio({HOLDOUT: held, "others": comparison.others}, {HOLDOUT: share, "others": 1 - share})
    return [found._replace(name="sample ratio of the holdout")]
