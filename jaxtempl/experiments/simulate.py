"""Simulate a world: its events as the event store exports them, and the truth in a separate file.

The truth has one row a suggestion: its selection time in the holdout and with each model, and the template that the
advocate wants and takes. No analysis reads it; tests compare estimates with it.

Dims: P pairs, N suggestions, K suggested templates.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from tqdm import tqdm

from jaxtempl import files
from jaxtempl.experiments.world import World
from jaxtempl.serve.events.export import SCHEMA
from jaxtempl.serve.experiments.assignment import assign
from jaxtempl.serve.experiments.definition import HOLDOUT

K = 5
KINDS = [f"{kind:032x}" for kind in range(3)]  # second halves of the ids of a suggestion's events
FOLLOWS = {"opened": 1.0, "shown": 1.5}  # seconds after the suggestion


class Population(NamedTuple):
    """Advocates and templates of a world.

    Attributes:
        volumes: Share of the pairs of each advocate.
        speeds: Mean time of each advocate over that of an average pair.
        effects: Saving of each advocate over the mean saving.
        popularity: Share of the choices of each template.
        accuracies: Probability that suggestions contain each template when it is wanted.
    """

    volumes: Float[np.ndarray, " G"]
    speeds: Float[np.ndarray, " G"]
    effects: Float[np.ndarray, " G"]
    popularity: Float[np.ndarray, " T"]
    accuracies: Float[np.ndarray, " T"]


class Outcomes(NamedTuple):
    """Selections of a week with their potential outcomes; nothing is assigned yet.

    Attributes:
        advocates: Advocate of each pair.
        pairs: Pair of each selection, ascending.
        wanted: Template that is wanted.
        seconds: Selection time in the holdout and with each model.
    """

    advocates: Int[np.ndarray, " P"]
    pairs: Int[np.ndarray, " N"]
    wanted: Int[np.ndarray, " N"]
    seconds: dict[str, Float[np.ndarray, " N"]]


class Week(NamedTuple):
    """Suggestions of a week, by column: the events' columns, the times of each potential outcome, the choices."""

    suggestions: dict[str, Any]
    seconds: dict[str, Float[np.ndarray, " N"]]
    wanted: Int[np.ndarray, " N"]
    taken: Int[np.ndarray, " N"]


def simulate(world: World, events: Path, truth: Path, seed: int = 0) -> int:
    """Write a world's events and its truth, both in Parquet, and return the number of suggestions."""
    random, written = np.random.default_rng(seed), 0
    people = standardized(population(world, random))
    columns = [("suggestion_id", pa.string()), ("wanted", pa.string()), ("taken", pa.string())]
    columns += [(f"seconds_{name}", pa.float64()) for name in (HOLDOUT, *(model.version for model in world.models))]
    with (
        files.atomic_file(events) as events_file,
        files.atomic_file(truth) as truth_file,
        pq.ParquetWriter(events_file, SCHEMA, compression="zstd") as events_writer,
        pq.ParquetWriter(truth_file, pa.schema(columns), compression="zstd") as truth_writer,
    ):
        for number in tqdm(range(world.weeks), unit="week", disable=not sys.stderr.isatty(), dynamic_ncols=True):
            week = _week(world, people, number, written, random)
            events_writer.write_table(_events(world, week, random))
            truth_writer.write_table(_truth(week, truth_writer.schema))
            written += len(week.wanted)
    return written


def population(world: World, random: np.random.Generator) -> Population:
    """Draw advocates and templates; speeds and effects have the mean 1 over all advocates that could be drawn."""
    volumes = random.lognormal(0, np.sqrt(np.log1p(world.volume_cv**2)), world.advocates)
    popularity = 1 / np.arange(1.0, world.templates + 1)
    accuracies = random.beta(8 * world.accuracy, 8 * (1 - world.accuracy), world.templates)
    spread = world.sd_log * np.sqrt(world.advocate_correlation)
    speeds = random.lognormal(-(spread**2) / 2, spread, world.advocates)
    effects = random.normal(1, world.effect_sd, world.advocates)
    return Population(volumes / volumes.sum(), speeds, effects, popularity / popularity.sum(), accuracies)


def standardized(people: Population) -> Population:
    """Return the population with the world's means for an average pair, whichever advocates were drawn."""
    volumes, speeds, effects = people.volumes, people.speeds, people.effects
    return people._replace(speeds=speeds / (volumes @ speeds), effects=effects / (volumes @ effects))


def outcomes(world: World, people: Population, number: int, random: np.random.Generator) -> Outcomes:
    """Draw the selections of a week and their potential outcomes."""
    advocates = random.choice(world.advocates, world.pairs_a_week, p=people.volumes)
    picks = 1 + random.poisson(world.picks - 1, world.pairs_a_week)
    pairs = np.repeat(np.arange(world.pairs_a_week), picks)
    wanted = random.choice(world.templates, pairs.size, p=people.popularity)
    return Outcomes(advocates, pairs, wanted, _seconds(world, people, number, advocates, pairs, wanted, random))


def _week(world: World, people: Population, number: int, first: int, random: np.random.Generator) -> Week:
    advocates, pairs, wanted, times = outcomes(world, people, number, random)
    lists = _suggested(people, wanted, random)
    exposure = _exposure(world, number, advocates, pairs, random)
    held = exposure["arm"] == HOLDOUT
    misses = ~(lists == wanted[:, None]).any(1) & ~held & (random.random(pairs.size) < world.induced)
    served = np.where(held, HOLDOUT, exposure["model_version"])
    seconds = np.select([served == name for name in times], list(times.values()))
    gaps = random.exponential(world.gap_seconds, pairs.size) + seconds
    begins = random.uniform(0, 6 * 86400, world.pairs_a_week)[pairs] + _within(gaps, np.bincount(pairs))
    content = {
        "suggestion_id": [f"{first + i:032x}" for i in range(pairs.size)],
        "at": np.datetime64(world.begin(number).replace(tzinfo=None), "us").astype(int) + (begins * 1e6).astype(int),
        "case_id": [f"{number}-{pair}" for pair in pairs],
        "advocate_id": [f"a{advocate}" for advocate in advocates[pairs]],
        "lists": lists,
        "seconds": seconds,
        **exposure,
    }
    return Week(content, times, wanted, np.where(misses, lists[:, 0], wanted))


def _within(gaps: Float[np.ndarray, " N"], picks: Int[np.ndarray, " P"]) -> Float[np.ndarray, " N"]:
    """Return the cumulative gaps within each pair."""
    total = np.cumsum(gaps)
    before = np.concatenate([[0.0], total[np.cumsum(picks)[:-1] - 1]])
    return total - np.repeat(before, picks)


def _suggested(
    people: Population, wanted: Int[np.ndarray, " N"], random: np.random.Generator
) -> Int[np.ndarray, "N K"]:
    """Return five different templates of each suggestion, the wanted one among them as often as its accuracy."""
    count = len(people.popularity)
    start = random.integers(0, count - K, wanted.size)[:, None] + np.arange(1, K + 1)
    lists = (wanted[:, None] + start) % count  # never the wanted one, and never one twice
    hits = np.flatnonzero(random.random(wanted.size) < people.accuracies[wanted])
    lists[hits, np.minimum(random.geometric(0.6, hits.size) - 1, K - 1)] = wanted[hits]
    return lists


def _seconds(
    world: World,
    people: Population,
    number: int,
    advocates: Int[np.ndarray, " P"],
    pairs: Int[np.ndarray, " N"],
    wanted: Int[np.ndarray, " N"],
    random: np.random.Generator,
) -> dict[str, Float[np.ndarray, " N"]]:
    """Return the potential outcomes: the selection time in the holdout and with each model."""
    by_pair = random.normal(0, np.sqrt(world.pair_correlation - world.advocate_correlation), world.pairs_a_week)
    rest = random.normal(0, np.sqrt(1 - world.pair_correlation), pairs.size)
    variance = world.sd_log**2 * (1 - world.advocate_correlation)
    times = world.seconds * people.speeds[advocates[pairs]]
    plain = times * np.exp(world.sd_log * (by_pair[pairs] + rest) - variance / 2)
    relative = people.effects[advocates[pairs]] * people.accuracies[wanted] / (people.popularity @ people.accuracies)
    learned = (1 - world.learning) ** number
    kept = {model.version: np.maximum(1 - model.saving * relative, 0.05) for model in world.models}
    return {HOLDOUT: plain, **{version: plain * share * learned for version, share in kept.items()}}


def _exposure(
    world: World,
    number: int,
    advocates: Int[np.ndarray, " P"],
    pairs: Int[np.ndarray, " N"],
    random: np.random.Generator,
) -> dict[str, Any]:
    """Return the columns of assignment of each suggestion; a mixed pair changes arms at its half."""
    experiments = world.experiments(number)
    assigned = [assign(experiments, f"a{a}", f"{number}-{i}", world.begin(number)) for i, a in enumerate(advocates)]
    names = np.array([one.arm if one else "" for one in assigned], object)
    arms = names[pairs]
    versions = list(experiments.test.arms) if experiments.test else []
    if versions:
        later = np.arange(pairs.size) - np.searchsorted(pairs, pairs) >= np.bincount(pairs)[pairs] / 2
        changed = later & (random.random(world.pairs_a_week) < world.mixed)[pairs] & np.isin(arms, versions)
        arms = np.where(changed & (arms == versions[0]), versions[1], np.where(changed, versions[0], arms))
    lost = (random.random(world.pairs_a_week) < world.lost_pairs) & (names == (versions[-1] if versions else ""))
    served = np.where(np.isin(arms, versions), arms, world.released(number))
    return {
        "experiment": np.array([one.experiment if one else None for one in assigned], object)[pairs],
        "arm": arms,
        "bucket": np.array([one.bucket if one else np.nan for one in assigned])[pairs],
        "config_sha256": experiments.sha256,
        "model_version": served,
        "lost": lost[pairs],
    }


def _events(world: World, week: Week, random: np.random.Generator) -> pa.Table:
    """Return the rows of the export: each suggestion with its events, without those that are lost."""
    content, count = week.suggestions, len(week.wanted)
    held, freehand = content["arm"] == HOLDOUT, random.random(count) < world.freehand
    matches = (content["lists"] == week.taken[:, None]) & ~held[:, None]
    place = np.where(matches.any(1) & ~freehand, matches.argmax(1) + 1, 0)
    last = np.where(freehand, "freehand", np.where(place > 0, "picked", "searched"))
    names = np.stack([np.full(count, "opened"), np.full(count, "shown"), last], axis=1)
    after = np.stack(
        [np.full(count, FOLLOWS["opened"]), np.full(count, FOLLOWS["shown"]), FOLLOWS["opened"] + content["seconds"]], 1
    )
    kept = ~content["lost"][:, None] & (random.random(names.shape) >= world.lost_events)
    kept &= (names != "shown") | ~held[:, None]
    order = np.argsort(content["at"], kind="stable")
    rows, kinds = np.nonzero(kept[order])
    rows, chosen = order[rows], kinds == 2
    position = np.where(chosen, place[rows], 0)
    at = content["at"][rows] + (after[rows, kinds] * 1e6).astype(int)
    templates = _ids(week.taken[rows], chosen & ~freehand[rows])
    values = {
        "suggestion_id": _taken(content["suggestion_id"], rows),
        "suggested_at": content["at"][rows],
        "case_id": _taken(content["case_id"], rows),
        "advocate_id": _taken(content["advocate_id"], rows),
        "model_version": content["model_version"][rows],
        "templates": _lists(content["lists"][rows], ~held[rows]),
        "probabilities": _probabilities(~held[rows]),
        "tokens": np.full(rows.size, 256),
        "dropped_messages": np.zeros(rows.size, int),
        "k": np.full(rows.size, K),
        "threshold": pa.nulls(rows.size, pa.float64()),
        "latency_ms": np.full(rows.size, 20.0),
        "reason": pa.array(np.full(rows.size, HOLDOUT), pa.string(), mask=~held[rows]),
        "event_id": pc.call_function(
            "binary_join_element_wise", [_taken(content["suggestion_id"], rows), _taken(KINDS, kinds), pa.scalar("")]
        ),
        "event": names[rows, kinds],
        "template": templates,
        "position": pa.array(position, mask=position == 0),
        "event_at": at,
        "received_at": at + 50_000,
        "suggested_position": pa.array(position, mask=position == 0),
        "experiment": content["experiment"][rows],
        "arm": pa.array(content["arm"][rows], pa.string(), mask=content["arm"][rows] == ""),
        "bucket": pa.array(content["bucket"][rows], from_pandas=True),  # NaN is null
        "config_sha256": [content["config_sha256"]] * rows.size,
        "withheld_templates": _lists(content["lists"][rows], held[rows]),
        "withheld_probabilities": _probabilities(held[rows]),
    }
    absent = pa.nulls(rows.size)  # no world has a shadow
    return pa.table([pa.array(values.get(field.name, absent)).cast(field.type) for field in SCHEMA], schema=SCHEMA)


def _truth(week: Week, schema: pa.Schema) -> pa.Table:
    everything = np.ones(len(week.wanted), bool)
    ids = [week.suggestions["suggestion_id"], _ids(week.wanted, everything), _ids(week.taken, everything)]
    return pa.table([pa.array(each) for each in (*ids, *week.seconds.values())], schema=schema)


def _taken(values: list[str], rows: Int[np.ndarray, " N"]) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(rows))


def _ids(templates: Int[np.ndarray, " N"], known: np.ndarray) -> pa.Array:
    names = pa.array([f"t{number}" for number in range(int(templates.max(initial=0)) + 1)], pa.string())
    return names.take(pa.array(templates, mask=~known))


def _lists(lists: Int[np.ndarray, "N K"], present: np.ndarray) -> pa.Array:
    kept = lists[present].ravel()
    return pa.ListArray.from_arrays(_offsets(present), _ids(kept, np.ones(kept.size, bool)))


def _probabilities(present: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(_offsets(present), pa.array(np.tile([0.4, 0.2, 0.1, 0.05, 0.05], present.sum())))


def _offsets(present: np.ndarray) -> pa.Array:
    """Return where the list of each row begins: K items if it is present, or none."""
    return pa.array(np.concatenate([[0], np.cumsum(K * present)]), pa.int32())
