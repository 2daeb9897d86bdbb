"""Sums of exported events: equal to a loop over the rows, repeated events count once, faults are counted apart."""

import math
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxtempl.errors import UserError
from jaxtempl.experiments import aggregate, simulate, sums, world
from jaxtempl.experiments.sums import Aggregate, PairSums, SelectionSums
from jaxtempl.serve.events import export

Row = dict[str, Any]
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
CAP = 30.0


def row(suggestion: str, event: str | None, seconds: float = 0.0, template: str | None = None, **more: Any) -> Row:
    """Return a row of the export: an event some seconds after noon."""
    at = NOON + timedelta(seconds=seconds)
    exposure = {"experiment": "v1-v2", "arm": "v1", "model_version": "v1", "advocate_id": "a", "case_id": "c"}
    lists = {"templates": ["t1", "t2", "t3", "t4", "t5"], "withheld_templates": []}
    return {
        **{"suggestion_id": suggestion, "suggested_at": NOON, "event": event, "template": template, "event_at": at},
        **{"received_at": at, "event_id": f"{suggestion} {event} {seconds}", **exposure, **lists, **more},
    }


def write(path: Path, rows: list[Row]) -> str:
    pq.write_table(pa.Table.from_pylist(rows, export.SCHEMA), path)
    return str(path)


def summed(tmp_path: Path, rows: list[Row], cap: float | None = None) -> Aggregate:
    return aggregate.aggregate(write(tmp_path / "events.parquet", rows), cap)


def expected(rows: list[Row]) -> tuple[dict[Any, dict[str, float]], dict[Any, dict[str, float]]]:
    """Return the sums by pair and day, and those by template, by a loop over the rows."""
    pairs: dict[Any, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    templates: dict[Any, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    suggestions: dict[str, list[Row]] = defaultdict(list)
    for each in rows:
        suggestions[each["suggestion_id"]].append(each)
    for events in suggestions.values():
        named = {each["event"]: each for each in events}
        reply = next((named[name] for name in ("picked", "searched", "freehand") if name in named), None)
        first = events[0]
        keys = (first["advocate_id"], first["experiment"], first["arm"], first["model_version"])
        pair = pairs[(*keys, first["case_id"], first["suggested_at"].date())]
        pair["suggestions"] += 1
        if reply is None:
            continue
        if "opened" not in named:
            pair["unopened"] += 1
            continue
        seconds = (reply["event_at"] - named["opened"]["event_at"]).total_seconds()
        pair["replies"] += 1
        pair["reply_seconds"] += seconds
        pair["reply_squares"] += seconds**2
        pair["capped_reply_seconds"] += min(seconds, CAP)
        if reply["event"] == "freehand":
            continue
        shown = first["templates"] or first["withheld_templates"]
        place = shown.index(reply["template"]) + 1 if reply["template"] in shown else 6
        for each in (pair, templates[(*keys, reply["template"])]):
            each["selections"] += 1
            each["seconds"] += seconds
            each["capped_seconds"] += min(seconds, CAP)
            for k in (1, 3, 5):
                each[f"hits_{k}"] += place <= k
        pair["squares"] += seconds**2
        pair["capped_squares"] += min(seconds, CAP) ** 2
        pair["over_cap"] += seconds > CAP
    return pairs, templates


def by_key(found: Aggregate, table: PairSums | SelectionSums, names: tuple[str, ...]) -> dict[Any, dict[str, float]]:
    values = {
        name: [getattr(found, f"{name}s")[i] for i in getattr(table, name)]
        for name in ("advocate", "experiment", "arm", "version")
    }
    values |= {"template": [found.templates[i] for i in table.template]} if isinstance(table, SelectionSums) else {}
    keys = list(zip(*(values.get(name, getattr(table, name, None)) for name in names), strict=True))
    measures = [name for name in table._fields if name not in (*names, "first", "last", "pair", "day")]
    return {key: {name: getattr(table, name)[i] for name in measures} for i, key in enumerate(keys)}


def test_sums_are_those_of_a_loop_over_the_rows(tmp_path: Path) -> None:
    changed = msgspec.structs.replace(world.read("broken-randomisation"), pairs_a_week=60, holdout=0.2)
    simulate.simulate(changed, tmp_path / "e.parquet", tmp_path / "t")
    rows = pq.read_table(tmp_path / "e.parquet").to_pylist()
    found, (pairs, templates) = aggregate.aggregate(str(tmp_path / "e.parquet"), CAP), expected(rows)
    cases = {pair: case for pair, (_, case) in enumerate(sorted({(key[0], key[4]) for key in pairs}))}
    keys = by_key(found, found.pairs, ("advocate", "experiment", "arm", "version", "pair", "day"))
    assert len(keys) == len(pairs)
    for (*key, pair, day), measures in keys.items():
        other = pairs[(*key, cases[pair], date(1970, 1, 1) + timedelta(days=int(day)))]
        assert measures == pytest.approx({name: other[name] for name in measures})
    keys = by_key(found, found.templates_chosen, ("advocate", "experiment", "arm", "version", "template"))
    assert keys.keys() == templates.keys()
    for key, measures in keys.items():
        assert measures == pytest.approx({name: templates[key][name] for name in measures})
    assert found.pairs.unopened.sum() > 0
    assert found.pairs.over_cap.sum() > 0


def test_repeated_events_and_files_count_once(tmp_path: Path) -> None:
    rows = [row("1", "opened"), row("1", "picked", 9.0, "t2"), row("2", "opened"), row("2", "freehand", 4.0)]
    once, twice = summed(tmp_path, rows), summed(tmp_path, rows + rows)
    write(tmp_path / "more.parquet", rows[1:])
    for other in (twice, aggregate.aggregate(str(tmp_path)), aggregate.aggregate(f"{tmp_path}/*.parquet")):
        np.testing.assert_equal(other.pairs, once.pairs)
    assert (once.pairs.replies.tolist(), once.pairs.selections.tolist()) == ([2], [1])
    assert (once.pairs.last - once.pairs.first).tolist() == [9.0]
    assert once.pairs.first.tolist() == [NOON.timestamp()]


def test_the_last_choice_is_the_reply_and_the_first_opening_its_start(tmp_path: Path) -> None:
    rows = [row("1", "opened", 1.0), row("1", "opened", 3.0), row("1", "picked", 5.0, "t1")]
    changed = summed(tmp_path, [*rows, row("1", "searched", 11.0, "t9"), row("1", "edited", 20.0, "t9")])
    assert (changed.pairs.seconds.tolist(), changed.pairs.hits_5.tolist()) == ([10.0], [0])
    own = summed(tmp_path, [*rows, row("1", "freehand", 31.0)]).pairs
    assert (own.selections.tolist(), own.seconds.tolist(), own.reply_seconds.tolist()) == ([0], [0.0], [30.0])


def test_replies_without_a_start_or_before_it_have_no_time(tmp_path: Path) -> None:
    rows = [row("1", "picked", 5.0, "t1"), row("2", "opened", 5.0), row("2", "picked", 4.0, "t1"), row("3", None)]
    found = summed(tmp_path, [*rows, row("4", "opened", received_at=NOON - timedelta(seconds=3))]).pairs
    counts = {name: getattr(found, name).tolist() for name in ("suggestions", "unopened", "early", "ahead", "replies")}
    assert counts == {"suggestions": [4], "unopened": [1], "early": [1], "ahead": [1], "replies": [0]}
    empty = summed(tmp_path, [row("3", None, event_at=None, received_at=None)]).pairs
    assert math.isnan(empty.first[0])
    assert math.isnan(empty.last[0])


def test_hits_of_the_holdout_are_among_the_withheld(tmp_path: Path) -> None:
    held = {"arm": "holdout", "experiment": "holdout", "templates": [], "withheld_templates": ["t7", "t8", "t9"]}
    found = summed(tmp_path, [row("1", "opened", **held), row("1", "searched", 8.0, "t8", **held)])
    assert [getattr(found.pairs, f"hits_{k}").tolist() for k in (1, 3, 5)] == [[0], [1], [1]]
    assert found.arms == ("holdout",)


def test_days_and_arms_of_a_pair_are_rows_and_the_unassigned_are_counted(tmp_path: Path) -> None:
    later = NOON + timedelta(days=7)
    rows = [row("1", "opened"), row("2", "opened", suggested_at=later), row("3", "opened", arm="v2")]
    rows += [row("4", "opened", arm=None), row("5", "opened", case_id=None), row("6", "opened", advocate_id=None)]
    found = summed(tmp_path, [*rows, row("7", "opened", advocate_id="b's")])
    assert found.unassigned == 3
    assert found.advocates == ("a", "b's")
    assert found.pairs.pair.tolist() == [0, 0, 0, 1]
    assert [date(1970, 1, 1) + timedelta(days=day) for day in found.pairs.day.tolist()] == [
        NOON.date(),
        later.date(),
        NOON.date(),
        NOON.date(),
    ]
    weeks = sums.weeks(found.pairs.day)
    assert [sums.week_begin(week) for week in weeks.tolist()[:2]] == [date(2026, 1, 5), date(2026, 1, 12)]
    assert sums.weeks(np.array([-4, -3, 3, 4])).tolist() == [-1, 0, 0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "names no file; pass Parquet of bin/serve events export"),
        (lambda path: path.write_text("hello"), "is no Parquet file"),
        (lambda path: write(path, [row("1", "opened", arm=None)]), r"no suggestion with an arm \(1 without\)"),
        (lambda path: write(path, []), "the events have no row"),
        (lambda path: pq.write_table(pa.table({"arm": ["a"]}), path), "has no column suggestion_id"),
        (
            lambda path: pq.write_table(export.SCHEMA.with_metadata({"format": "9"}).empty_table(), path),
            "has format 9; this release reads up to 1",
        ),
    ],
)
def test_what_cannot_be_aggregated_is_refused_in_one_line(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "e.parquet")
    with pytest.raises(UserError, match=message) as error:
        aggregate.aggregate(str(tmp_path / "e.parquet"))
    assert "\n" not in str(error.value)
