"""Savings, agreement and templates over the system's life: planted truths, independent variances, refusals."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from jaxtempl.errors import UserError
from jaxtempl.experiments import estimators, lifetime, templates
from jaxtempl.experiments.estimators import ClusterSums
from jaxtempl.experiments.sums import Aggregate, Measures, PairSums, SelectionSums

ADVOCATES, WEEKS, TEMPLATES = 40, 6, 20
FOLLOWED = 0.25  # of the choices that the five would not have contained
ACCURACY = np.linspace(0.5, 0.9, TEMPLATES)
CASE_SECONDS = 1000.0
MONDAY = 20458  # 2026-01-05, in days since 1970-01-01


def drawn(seed: int = 0, pairs: int = 6000, held_share: float = 0.3) -> Aggregate:
    """Return sums of four selections a pair; suggestions save ten seconds times the template's accuracy."""
    random = np.random.default_rng(seed)
    advocate, held = random.integers(0, ADVOCATES, pairs), random.random(pairs) < held_share
    week = random.integers(0, WEEKS, pairs)
    pair = np.repeat(np.arange(pairs), 4)
    template = random.integers(0, TEMPLATES, pair.size)
    speed = random.normal(0, 2, ADVOCATES)[advocate[pair]]
    shown = ~held[pair]
    seconds = 30 + speed + random.normal(0, 4, pair.size) - 10 * ACCURACY[template] * shown
    agreed = random.random(pair.size) < ACCURACY[template] + (1 - ACCURACY[template]) * FOLLOWED * shown
    length = CASE_SECONDS + random.normal(0, 50, pairs) + np.bincount(pair, seconds)
    day = MONDAY + 7 * week
    summed = {
        "selections": np.bincount(pair),
        "seconds": np.bincount(pair, seconds),
        "hits_5": np.bincount(pair, agreed).astype(int),
    }
    keys = {"pair": np.arange(pairs), "advocate": advocate, "arm": held.astype(int), "version": (week >= 3).astype(int)}
    cell = {"advocate": advocate[pair], "arm": held[pair].astype(int), "template": template}
    chosen = {**cell, "selections": np.ones(pair.size, int), "seconds": seconds, "hits_5": agreed.astype(int)}
    return Aggregate(
        columns(PairSums, **keys, **summed, day=day, last=length),
        columns(SelectionSums, **chosen),
        tuple(f"a{number}" for number in range(ADVOCATES)),
        ("holdout",),
        ("treatment", "holdout"),
        ("v1", "v2"),
        tuple(f"t{number}" for number in range(TEMPLATES)),
        unassigned=0,
        cap=None,
    )


def columns(kind: Any, **given: np.ndarray) -> Any:
    """Return a table with zeros in the columns that are not given."""
    rows = len(given["advocate"])
    zeros = {name: np.zeros(rows, float if hint is Measures else int) for name, hint in kind.__annotations__.items()}
    return kind(**(zeros | given))


@pytest.fixture(scope="module")
def found() -> Aggregate:
    return drawn()


def time_sums(found: Aggregate) -> ClusterSums:
    held = lifetime.is_held(found, found.pairs.arm)
    return lifetime._time_sums(found.pairs, held, np.ones(len(held), bool))


def jackknife(sums: ClusterSums, function: Any) -> float:
    """Return the standard error by leaving out each cluster."""
    clusters = range(len(sums.totals))
    left = [np.delete(sums.totals, c, 0).sum(0) / np.delete(sums.weights, c, 0).sum(0) for c in clusters]
    values = np.array([function(means) for means in left])
    return float(np.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()))


def test_the_combination_of_a_difference_is_the_difference(found: Aggregate) -> None:
    sums = time_sums(found)
    plain = estimators.difference(sums)
    combined = estimators.combination(sums, plain.value, np.array([-1.0, 1.0]))
    assert (combined.value, combined.se) == (plain.value, pytest.approx(plain.se))


def test_the_variance_of_a_combination_is_that_of_the_jackknife() -> None:
    random = np.random.default_rng(1)
    weights = random.integers(5, 30, (60, 3)).astype(float)
    rates = np.array([20.0, 4.0, 0.5]) * (1 + 0.2 * random.normal(size=(60, 1)) + 0.1 * random.normal(size=(60, 3)))
    sums = ClusterSums(rates * weights, weights)

    def function(means: np.ndarray) -> float:
        return float(means[0] * means[2] / means[1])

    means = sums.totals.sum(0) / sums.weights.sum(0)
    gradient = function(means) / means * np.array([1, -1, 1])
    assert estimators.combination(sums, function(means), gradient).se == pytest.approx(
        jackknife(sums, function), rel=0.03
    )


def test_the_degrees_of_freedom_of_a_combination_do_not_depend_on_units(found: Aggregate) -> None:
    sums = time_sums(found)
    scaled = ClusterSums(sums.totals * np.array([1, 1000.0]), sums.weights)
    one = estimators.combination(sums, 1.0, np.array([-1.0, 1.0]))
    other = estimators.combination(scaled, 1.0, np.array([-1.0, 0.001]))
    assert (one.se, one.df) == (pytest.approx(other.se), pytest.approx(other.df))


def test_the_saving_of_a_selection_a_case_and_as_a_share(found: Aggregate) -> None:
    worth, saving = lifetime.saved(found), 10 * ACCURACY.mean()
    assert worth.selection.low < saving < worth.selection.high
    assert worth.case.low < 4 * saving < worth.case.high
    share = saving / (CASE_SECONDS / 4 + 30)
    assert worth.case_share.low < share < worth.case_share.high
    assert worth.case_time.low < 4 * saving < worth.case_time.high
    assert worth.paper_share == pytest.approx(worth.selection.value / 207.3, rel=1e-3)


def test_the_interval_of_the_share_is_that_of_the_jackknife(found: Aggregate) -> None:
    rows, worth = found.pairs, lifetime.saved(found)
    times = time_sums(found)
    lengths = estimators.sums_by_cluster(rows.last, rows.advocate, rows.arm, rows.selections)
    sums = ClusterSums(
        np.column_stack([times.totals, lengths.totals[:, 0]]), np.column_stack([times.weights, lengths.weights[:, 0]])
    )
    se = jackknife(sums, lambda means: (means[1] - means[0]) / (means[2] + means[1] - means[0]))
    assert worth.case_share.se == pytest.approx(se, rel=0.03)


def test_the_agreement_that_suggestions_induce_is_found(found: Aggregate) -> None:
    agreement, rest = lifetime.agreement(found), 1 - ACCURACY.mean()
    assert agreement.holdout.low < 1 - rest < agreement.holdout.high
    assert agreement.induced.low < rest * FOLLOWED < agreement.induced.high
    assert agreement.followed.low < FOLLOWED < agreement.followed.high
    assert np.exp(agreement.ratio.value) == pytest.approx(agreement.treatment.value / agreement.holdout.value)


def test_a_holdout_that_always_agrees_is_refused(found: Aggregate) -> None:
    rows = found.pairs._replace(hits_5=found.pairs.selections)
    with pytest.raises(UserError, match="nothing is left to induce"):
        lifetime.agreement(found._replace(pairs=rows))


def test_weeks_and_models_have_the_times_of_both_groups(found: Aggregate) -> None:
    weeks, models = list(lifetime.weekly_times(found)), list(lifetime.model_times(found))
    assert [week.week for week in weeks[:2]] == ["2026-01-05", "2026-01-12"]
    assert [week.version for week in weeks] == ["v1"] * 3 + ["v2"] * 3
    assert all(week.times and week.times.saving.low > 0 for week in weeks)
    assert [(model.version, model.weeks) for model in models] == [("v1", 3), ("v2", 3)]
    for model in models:
        assert model.times.holdout.value - model.times.treatment.value == pytest.approx(model.times.saving.value)


def test_a_slower_holdout_has_a_larger_saving(found: Aggregate) -> None:
    rows = found.pairs
    slower = found._replace(pairs=rows._replace(seconds=rows.seconds + 5.0 * (rows.arm == 1) * rows.selections))
    before, after = lifetime.saved(found), lifetime.saved(slower)
    assert after.selection.value - before.selection.value == pytest.approx(5)


def test_a_week_with_one_advocate_in_the_holdout_has_no_times(found: Aggregate) -> None:
    rows = found.pairs
    kept = (rows.day > MONDAY) | (rows.arm == 0) | (rows.advocate == 3)
    few = found._replace(pairs=PairSums(*(column[kept] for column in rows)))
    assert [week.times is None for week in lifetime.weekly_times(few)] == [True] + [False] * 5


def test_a_model_that_the_holdout_never_had_is_left_out(found: Aggregate) -> None:
    rows = found.pairs
    tested = found._replace(pairs=rows._replace(version=np.where(rows.arm == 1, 0, rows.version)))
    assert [model.version for model in lifetime.model_times(tested)] == ["v1"]


def test_the_saving_of_templates_follows_their_accuracy(found: Aggregate) -> None:
    trend = templates.template_trend(found)
    assert len(trend.points) == TEMPLATES
    assert trend.tau.low > 0.3
    assert trend.tau.value == pytest.approx(trend.test.tau)
    assert trend.test.p < 1e-3
    assert trend.tau_across_halves < trend.tau.value
    assert min(trend.accuracy_reliability, trend.saving_reliability) > 0.7
    values = [(point.accuracy, point.saving) for point in trend.points]
    assert trend.tau.value == pytest.approx(stats.kendalltau(*zip(*values, strict=True)).statistic)


def test_templates_of_most_volume_are_chosen(found: Aggregate) -> None:
    rows = found.templates_chosen
    more = found._replace(
        templates_chosen=rows._replace(selections=rows.selections * np.where(rows.template < 5, 2, 1))
    )
    assert sorted(templates._most_chosen(more, 5)[0]) == [f"t{number}" for number in range(5)]


def test_a_trend_of_two_templates_is_refused(found: Aggregate) -> None:
    with pytest.raises(UserError, match="2 common templates; a trend needs three or more"):
        templates.template_trend(found, top=2)


@pytest.mark.parametrize("arm", [0, 1])
def test_events_of_one_group_are_refused(found: Aggregate, arm: int) -> None:
    rows = found.pairs
    one = found._replace(pairs=rows._replace(arm=np.full(len(rows.arm), arm)))
    with pytest.raises(UserError, match="the report compares a holdout with other pairs: serve with a holdout"):
        lifetime.saved(one)
