"""Trials of the statistics of experiments: one simulated or real experiment each, with what every method concludes.

A trial draws a world from `jaxtempl.experiments.simulate`, assigns its arms, and returns one number a method.

Dims: N interactions, P pairs, G clusters.
"""

import csv
import functools
import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from jaxtempl.errors import UserError
from jaxtempl.experiments import checks, estimators, plan, power, randomization, sequential, simulate, world
from jaxtempl.experiments.estimators import Estimate, Sample, difference, sums_by_cluster
from jaxtempl.experiments.plan import PairTimes
from jaxtempl.experiments.power import Traffic
from jaxtempl.experiments.simulate import Outcomes, Population
from jaxtempl.experiments.world import World

LEVEL = 0.05
FEW = 40  # effective clusters under which re-randomisation is the headline
DRAWS = 499  # of the re-randomisation test
DAYS = 14
PAIRS = 4000  # of both arms, in two weeks
SAVING = 0.35  # of the treated arm, where there is an effect

Unit = Literal["pair", "advocate"]
Conclusions = Mapping[str, float]


class Trial(NamedTuple):
    """Interactions of one experiment.

    Attributes:
        advocates: Advocate of each interaction.
        pairs: Pair of each interaction, from 0.
        treated: Arm of each interaction, 0 or 1.
        seconds: Time of each interaction.
    """

    advocates: np.ndarray
    pairs: np.ndarray
    treated: np.ndarray
    seconds: np.ndarray


def made(advocates: int, **changes: Any) -> World:
    """Return the world `null` of some advocates, with all pairs of a test in one week."""
    fixed = {"advocates": advocates, "pairs_a_week": PAIRS, "weeks": 1}
    return msgspec.structs.replace(world.read("null"), **fixed, **changes)


def assign(unit: Unit, drawn: Outcomes, random: np.random.Generator) -> np.ndarray:
    """Return the arm of each interaction; a fair coin a unit, as the server's hash gives."""
    advocate = drawn.advocates[drawn.pairs]
    return random.integers(0, 2, len(drawn.advocates))[drawn.pairs if unit == "pair" else advocate]


def effect_world(advocates: int) -> World:
    """Return a world whose first model saves nothing."""
    models = (world.SimulatedModel("v1", 0.0, 0), world.SimulatedModel("v2", SAVING))
    return made(advocates, models=models)


def trial(world: World, people: Population, unit: Unit, random: np.random.Generator) -> Trial:
    """Draw an experiment between the world's two models."""
    drawn = simulate.outcomes(world, people, 0, random)
    treated = assign(unit, drawn, random)
    seconds = np.where(treated == 1, drawn.seconds["v2"], drawn.seconds["v1"])
    return Trial(drawn.advocates[drawn.pairs], drawn.pairs, treated, seconds)


def rejections(found: Trial, unit: Unit) -> Conclusions:
    """Return, for each method, whether it rejects equal arms at 5 %."""
    p = p_values(found, unit)
    return {name: float(value <= LEVEL) for name, value in p.items()}


def p_values(found: Trial, unit: Unit) -> dict[str, float]:
    """Return the p-value of each method; the headline re-randomises where the effective clusters are few."""
    advocates = sums_by_cluster(found.seconds, found.advocates, found.treated)
    by_advocate = difference(advocates).p
    few = estimators.effective_clusters(advocates) < FEW
    return {
        "headline": rerandomized(found, unit) if few else by_advocate,
        "by advocate": by_advocate,
        "by pair": difference(sums_by_cluster(found.seconds, found.pairs, found.treated)).p,
        "naive Welch": naive(found).p,
    }


def naive(found: Trial) -> Estimate:
    """Return Welch's test of the interactions."""
    arms = [Sample.of(found.seconds[found.treated == arm]) for arm in (0, 1)]
    return estimators.naive_welch(*arms)


def rerandomized(found: Trial, unit: Unit) -> float:
    """Return the p-value of re-randomisation at the assigned unit."""
    units = found.pairs if unit == "pair" else found.advocates
    weights, totals = np.bincount(units).astype(float), np.bincount(units, found.seconds)
    treated, seen = np.bincount(units, found.treated) > 0, weights > 0
    return randomization.rerandomize(totals[seen], weights[seen], treated[seen], draws=DRAWS).p


def null(seed: int, unit: Unit, advocates: int) -> Conclusions:
    """Return the rejections in a world of two equal models."""
    random, world = np.random.default_rng([1, seed]), made(advocates)
    people = simulate.standardized(simulate.population(world, random))
    return rejections(trial(world, people, unit, random), unit)


def coverage(seed: int, unit: Unit, advocates: int) -> Conclusions:
    """Return whether each 95 % interval contains the truth, with savings that differ by advocate.

    The interval by advocate is of the mean over all advocates like these; that by pair is of these advocates alone.
    """
    random, world = np.random.default_rng([2, seed]), effect_world(advocates)
    people = simulate.population(world, random)
    found, truth = trial(world, people, unit, random), -SAVING * world.seconds
    own = truth * float(people.volumes @ (people.speeds * people.effects))
    advocate = sums_by_cluster(found.seconds, found.advocates, found.treated)
    pair = sums_by_cluster(found.seconds, found.pairs, found.treated)
    return {
        "by advocate": covers(difference(advocate), truth),
        "by advocate, log ratio": covers(estimators.log_ratio(advocate), float(np.log1p(-SAVING))),
        "by pair, of these advocates": covers(difference(pair), own),
        "by pair": covers(difference(pair), truth),
        "naive Welch": covers(naive(found), truth),
    }


def covers(found: Estimate, truth: float) -> float:
    """Return 1 if an interval contains the truth."""
    return float(found.low <= truth <= found.high)


@functools.cache
def planned(advocates: int) -> Traffic:
    """Return the traffic of an A/A world, as a pilot of the same length measures it."""
    random, world = np.random.default_rng(0), made(advocates)
    pilots = [trial_traffic(world, random) for _ in range(50)]
    return Traffic._make([*np.mean(pilots, axis=0)[:-1].tolist(), advocates])


def trial_traffic(world: World, random: np.random.Generator) -> Traffic:
    """Return the traffic that the pilot of a new population shows."""
    return measured(trial(world, simulate.standardized(simulate.population(world, random)), "pair", random))


def measured(found: Trial) -> Traffic:
    """Return the traffic that `bin/experiment plan --events` estimates."""
    values = (np.bincount(found.pairs, weights) for weights in (None, found.seconds, found.seconds**2))
    counts, totals, squares = (value.astype(float) for value in values)
    times = PairTimes(counts, totals, squares, (np.bincount(found.pairs, found.treated) > 0).astype(int))
    flags = plan.estimated(times, float(DAYS), len(np.unique(found.advocates)))
    return Traffic(**flags, share=0.5)  # type: ignore[arg-type]


def looks(seed: int, unit: Unit, advocates: int) -> Conclusions:
    """Return, for each method, whether any of 14 daily looks at two equal arms rejects."""
    random, world = np.random.default_rng([3, seed]), made(advocates)
    people = simulate.standardized(simulate.population(world, random))
    found, se = trial(world, people, unit, random), power.standard_error(planned(advocates), float(DAYS))
    if unit == "advocate":  # a plan for the assigned unit
        se *= unit_ratio(advocates)
    days = random.integers(0, DAYS, PAIRS)[found.pairs]
    estimates = [look(found, days <= day) for day in range(DAYS)]
    sequence = [sequential.confidence_sequence(one, se) for one, _ in estimates]
    return {
        "confidence sequence": float(any(not each.low <= 0 <= each.high for each in sequence)),
        "by advocate at every look": float(any(one.p <= LEVEL for one, _ in estimates)),
        "naive Welch at every look": float(any(two.p <= LEVEL for _, two in estimates)),
    }


def look(found: Trial, seen: np.ndarray) -> tuple[Estimate, Estimate]:
    """Return the estimate by advocate and the naive one of the interactions so far."""
    part = Trial(*(values[seen] for values in found))
    return difference(sums_by_cluster(part.seconds, part.advocates, part.treated)), naive(part)


@functools.cache
def unit_ratio(advocates: int) -> float:
    """Return the standard error of a test assigned by advocate over that of one assigned by pair."""
    random, world, found = np.random.default_rng(0), made(advocates), dict[str, list[float]](pair=[], advocate=[])
    for _ in range(50):
        people = simulate.standardized(simulate.population(world, random))
        for unit in ("pair", "advocate"):
            part = trial(world, people, unit, random)
            found[unit].append(difference(sums_by_cluster(part.seconds, part.advocates, part.treated)).se)
    return float(np.mean(found["advocate"]) / np.mean(found["pair"]))


def promise(seed: int, advocates: int, wanted: float) -> Conclusions:
    """Return the power that a plan from a pilot promises for a saving, and whether the headline finds it.

    The saving is the one that the average pilot detects with the wanted power.
    """
    average = planned(advocates)
    detectable = power.detectable_effect(power.standard_error(average, float(DAYS)), advocates - 1.0, wanted)
    random, null = np.random.default_rng([4, seed]), made(advocates)
    saving = detectable / null.seconds
    base = null.models[0].saving  # the test changes the times that the pilot measures by the saving alone
    models = (world.SimulatedModel("v1", base, 0), world.SimulatedModel("v2", base + saving))
    people = simulate.standardized(simulate.population(null, random))
    pilot = measured(trial(null, people, "pair", random))
    test = msgspec.structs.replace(null, models=models)
    [point] = power.power_curve(pilot, detectable, [float(DAYS)])
    p = p_values(trial(test, people, "pair", random), "pair")
    return {"promised": point.power} | {
        name: float(p[name] <= LEVEL) for name in ("headline", "by advocate", "by pair")
    }


def sample_ratio(seed: int, lost: float, weights: tuple[float, float]) -> Conclusions:
    """Return whether the check flags pairs of which a share of the second arm is lost."""
    random = np.random.default_rng([5, seed])
    second = random.binomial(PAIRS, weights[1])
    counts = {"v1": PAIRS - second, "v2": int(random.binomial(second, 1 - lost))}
    return {"flagged": float(not checks.sample_ratio(counts, {"v1": weights[0], "v2": weights[1]}).passed)}


class Picks(NamedTuple):
    """Real picks: the advocate and the pair of each, and its time."""

    advocates: np.ndarray
    pairs: np.ndarray
    seconds: np.ndarray


@functools.cache
def real_picks(path: Path) -> Picks:
    """Read the picks of complete dialogues of star_selections.csv.gz."""
    with gzip.open(path, "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["reply"] == "pick" and row["split"] != "incomplete"]
    if not rows:
        raise UserError(f"{path} has no picks")
    advocates, pairs = (
        np.unique([row[name] for row in rows], return_inverse=True)[1] for name in ("wizard", "dialogue")
    )
    return Picks(advocates, pairs, np.array([float(row["reply_s"]) for row in rows]))


def real(seed: int, unit: Unit, path: Path) -> Conclusions:
    """Return the rejections of two equal arms that are drawn over real picks."""
    random, picks = np.random.default_rng([6, seed]), real_picks(path)
    units = picks.pairs if unit == "pair" else picks.advocates
    treated = random.integers(0, 2, int(units.max()) + 1)[units]
    return rejections(Trial(picks.advocates, picks.pairs, treated, picks.seconds), unit)
