"""Select the pairs of an A/B test from the sums of an export.

Dims: P rows of pairs, G advocates.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxtempl.errors import UsageError, UserError
from jaxtempl.experiments import estimators
from jaxtempl.experiments.estimators import ClusterSums
from jaxtempl.experiments.sums import Aggregate, PairSums
from jaxtempl.serve.experiments.definition import HOLDOUT, TREATMENT, Experiments


class ComparedPairs(NamedTuple):
    """The pairs of an experiment, and the two arms that are compared.

    Attributes:
        experiment: Name of the experiment.
        arms: Names of all its arms; the first two are compared.
        weights: Configured weight of each arm; equal ones without a file.
        rows: Sums of its pairs, with `arm` as an index of `arms`.
        held: Sums of the holdout's pairs on the same days.
        others: Number of pairs that were not held out on these days.
        advocates: Ids of the advocates.
        earlier: Mean selection time of each advocate before the first day, in seconds; NaN without any, shape [G].
        cap: Cap on times in seconds; None if none was declared.
        last_day: Last day of the events, of whichever experiment, in days since 1970-01-01.
    """

    experiment: str
    arms: tuple[str, ...]
    weights: Mapping[str, float]
    rows: PairSums
    held: PairSums
    others: int
    advocates: tuple[str, ...]
    earlier: Float[np.ndarray, " G"]
    cap: float | None
    last_day: int

    @property
    def compared(self) -> PairSums:
        """Rows of the two arms."""
        return self.rows.take(self.rows.arm < 2)


def parse_arms(test: str) -> tuple[str, str]:
    """Return the two arms of `A/B`.

    Raises:
        UsageError: It has another form, names one arm twice, or names an arm outside of tests.
    """
    first, _, second = test.partition("/")
    if not (first and second and "/" not in second and first != second):
        raise UsageError(f"--test={test} names no two arms; write --test=v3/v4, the baseline first")
    if {first, second} & {HOLDOUT, TREATMENT}:
        raise UsageError(f"--test={test} is no A/B test; bin/experiment report compares the holdout with the rest")
    return first, second


def select(sums: Aggregate, test: str, experiments: Experiments | None) -> ComparedPairs:
    """Return the pairs of a test.

    Args:
        sums: Sums of the export.
        test: Two arms, as `A/B`.
        experiments: File of the experiments, for the weights of the arms.

    Raises:
        UserError: No experiment, or several, have both arms, or the file describes another test.
    """
    first, second = parse_arms(test)
    experiment, found = _experiment(sums, first, second)
    configured = _weights(experiments, experiment, found) or dict.fromkeys(found, 1.0)
    arms = (first, second, *sorted(set(configured) - {first, second}))
    code = np.array([arms.index(name) if name in arms else -1 for name in sums.arms])
    rows = sums.pairs.take(sums.pairs.experiment == sums.experiments.index(experiment))
    begin, end = rows.day.min(), rows.day.max()
    same_days = sums.pairs.take((sums.pairs.day >= begin) & (sums.pairs.day <= end))
    is_held = np.array([name == HOLDOUT for name in sums.arms])[same_days.arm]
    return ComparedPairs(
        experiment,
        arms,
        {arm: configured[arm] for arm in arms},
        rows._replace(arm=code[rows.arm]),
        same_days.take(is_held),
        len(np.unique(same_days.pair[~is_held])),
        sums.advocates,
        _earlier(sums, int(begin)),
        sums.cap,
        int(sums.pairs.day.max()),
    )


def cluster_sums(
    rows: PairSums, total: str, weight: str = "selections", by: Literal["advocate", "pair"] = "advocate"
) -> ClusterSums:
    """Return the sums of the two arms by advocate or by pair.

    Args:
        rows: Rows of two arms.
        total: Column of the numerator.
        weight: Column of the denominator.
        by: Column of the clusters.
    """
    clusters = np.unique(getattr(rows, by), return_inverse=True)[1]
    return estimators.sums_by_cluster(getattr(rows, total).astype(float), clusters, rows.arm, getattr(rows, weight))


def _experiment(sums: Aggregate, first: str, second: str) -> tuple[str, set[str]]:
    """Return the experiment that has both arms, and all its arms."""
    seen = np.unique(np.column_stack([sums.pairs.experiment, sums.pairs.arm]), axis=0)
    arms = {name: {sums.arms[arm] for i, arm in seen if i == number} for number, name in enumerate(sums.experiments)}
    found = [name for name, names in arms.items() if {first, second} <= names]
    if len(found) != 1:
        tests = "; ".join(f"{name}: {', '.join(sorted(names))}" for name, names in arms.items()) or "none"
        which = f"several experiments have {first} and {second}" if found else f"no experiment has {first} and {second}"
        raise UserError(f"{which}; the events have {tests}. Name two arms of one, or export the days of one alone")
    return found[0], arms[found[0]]


def _weights(experiments: Experiments | None, experiment: str, arms: set[str]) -> dict[str, float]:
    if experiments is None:
        return {}
    test = experiments.test
    if test is None or test.name != experiment or not arms <= set(test.arms):
        named = f"{test.name}: {', '.join(test.arms)}" if test else "no test"
        raise UserError(f"the file of experiments has {named}; the events are of {experiment}: pass the file in force")
    return test.weights


def _earlier(sums: Aggregate, begin: int) -> Float[np.ndarray, " G"]:
    before = sums.pairs.take(sums.pairs.day < begin)
    count = len(sums.advocates)
    seconds, selections = (np.bincount(before.advocate, each, count) for each in (before.seconds, before.selections))
    return np.divide(seconds, selections, out=np.full(count, np.nan), where=selections > 0)
