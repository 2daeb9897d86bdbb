"""Stores of format 1, which the release before experiments wrote, are migrated in place on both databases."""

import os
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import sqlalchemy as sa
from event_fixtures import NOON, ODD, commit, make_event, make_suggestion, open_store, read_rows
from event_fixtures import postgres as postgres
from event_fixtures import url as url
from masked import GOLDEN

from jaxtempl.config.paths import ROOT
from jaxtempl.errors import UserError
from jaxtempl.serve.events import database, tables
from jaxtempl.serve.events.export import SCHEMA, export
from jaxtempl.serve.events.store import StoredShadow
from jaxtempl.serve.experiments.definition import Experiments, Holdout

EXPOSURE = {column.name for column in tables.EXPOSURE}
KILLED = """
import os, signal, sys
import sqlalchemy as sa
from jaxtempl.serve.events import database

def kill(connection, cursor, statement, *_):
    if "config_sha256" in statement:
        os.kill(os.getpid(), signal.SIGKILL)

sa.event.listen(sa.Engine, "after_cursor_execute", kill)
database.open_to_write(sys.argv[1])
"""


@pytest.fixture
def former(url: str) -> str:
    """A store that the release before wrote: three suggestions, two of them with two events."""
    parsed = sa.make_url(url)
    script = (GOLDEN / f"events.format1.{parsed.get_backend_name()}.sql").read_text()
    if parsed.get_backend_name() == "sqlite":
        with sqlite3.connect(str(parsed.database)) as connection:
            connection.executescript(script)
        connection.close()
        return url
    engine = sa.create_engine(url)
    with engine.begin() as opened:
        opened.connection.cursor().execute(script.encode())
    engine.dispose()
    return url


def rows_of_format_1(url: str) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of both tables, without the columns of later formats."""
    engine = database.open_to_read(url)
    with engine.connect() as connection:
        old = [column for column in tables.suggestions.c if column.name not in EXPOSURE]
        found = {
            "suggestions": connection.execute(sa.select(*old).order_by("suggestion_id")).mappings().all(),
            "events": connection.execute(sa.select(tables.events).order_by("event_id")).mappings().all(),
        }
    engine.dispose()
    return {name: [dict(row) for row in rows] for name, rows in found.items()}


def test_an_older_store_keeps_every_row_and_takes_exposures(former: str) -> None:
    before = rows_of_format_1(former)
    assert {name: len(rows) for name, rows in before.items()} == {"suggestions": 3, "events": 4}
    assert before["suggestions"][0]["case_id"] == ODD
    new = make_suggestion(experiment="t", arm="holdout", bucket=0.25, config_sha256="ab", withheld_templates=["a"])
    with open_store(former) as store:
        store.add(new)
        store.add(make_shadow(new.suggestion_id))
        old = make_suggestion(suggestion_id=before["suggestions"][2]["suggestion_id"])
        assert commit(store, make_event(new, event="opened"), make_event(old)) == [None, None]
    after = rows_of_format_1(former)
    assert after["suggestions"][:3] == before["suggestions"]
    assert [row for row in after["events"] if row in before["events"]] == before["events"]
    rows = {row["suggestion_id"]: row for row in read_rows(former, tables.suggestions)}
    assert {name: rows[new.suggestion_id][name] for name in EXPOSURE} == {
        "experiment": "t", "arm": "holdout", "bucket": 0.25, "config_sha256": "ab", "withheld_templates": ["a"],
        "withheld_probabilities": [],
    }  # fmt: skip
    assert {rows[old.suggestion_id][name] for name in EXPOSURE} == {None}
    assert read_rows(former, tables.store) == [{"format": 2}]
    assert len(read_rows(former, tables.shadows)) == 1


def make_shadow(suggestion: str) -> StoredShadow:
    return StoredShadow(
        suggestion_id=suggestion, model_version="v5", templates=[ODD], probabilities=[0.5], latency_ms=3.5
    )


def columns(url: str, table: str) -> list[tuple[str, str, bool]]:
    """Return name, type and nullability of a table's columns."""
    engine = database.open_to_read(url)
    found = [(c["name"], str(c["type"]), c["nullable"]) for c in sa.inspect(engine).get_columns(table)]
    engine.dispose()
    return found


def test_a_migrated_store_has_the_columns_of_a_new_one(
    former: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    on_postgresql = former.startswith("postgresql")
    new = request.getfixturevalue("postgres").database() if on_postgresql else f"sqlite:///{tmp_path / 'new.sqlite'}"
    for address in (former, new):
        database.open_to_write(address).dispose()
    for table in tables.metadata.tables:
        assert columns(former, table) == columns(new, table)


def test_a_kill_within_the_migration_leaves_the_old_format_and_the_next_start_migrates(former: str) -> None:
    before = rows_of_format_1(former)
    command = [sys.executable, "-c", KILLED, former]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_rows(former, tables.store) == [{"format": 1}]
    assert EXPOSURE & {name for name, *_ in columns(former, "suggestions")} == set()
    assert rows_of_format_1(former) == before
    database.open_to_write(former).dispose()
    assert read_rows(former, tables.store) == [{"format": 2}]
    assert rows_of_format_1(former) == before


def test_an_export_of_an_older_store_changes_nothing_and_equals_that_of_the_migrated_one(
    former: str, tmp_path: Path
) -> None:
    assert export(former, tmp_path / "old.parquet") == (3, 4)
    assert read_rows(former, tables.store) == [{"format": 1}]
    database.open_to_write(former).dispose()
    assert export(former, tmp_path / "new.parquet") == (3, 4)
    old, new = (pyarrow.parquet.read_table(tmp_path / f"{name}.parquet") for name in ("old", "new"))
    assert old.schema.equals(SCHEMA)
    assert old.equals(new)
    assert set(old["withheld_templates"].to_pylist()[0]) == set(old["arm"].drop_null().to_pylist()) == set()


def test_an_export_has_exposures_and_shadows(url: str, tmp_path: Path) -> None:
    held = make_suggestion(
        **{"templates": [], "probabilities": [], "reason": "holdout", "experiment": "holdout", "arm": "holdout"},
        **{
            "bucket": 0.01,
            "config_sha256": "ab",
            "withheld_templates": ["b", ODD],
            "withheld_probabilities": [0.6, 0.1],
        },
    )
    plain = make_suggestion(at=NOON.replace(year=2027))
    with open_store(url) as store:
        for record in (held, make_shadow(held.suggestion_id), plain, make_shadow("0" * 32)):
            store.add(record)
        assert commit(store, make_event(held, event="opened", template=None, position=None)) == [None]
        assert commit(store, make_event(held, event="searched", template=ODD, position=None)) == [None]
    assert export(url, tmp_path / "a.parquet") == (2, 2)
    first, second, last = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert {first["event"], second["event"]} == {"opened", "searched"}
    for row in (first, second):
        assert (row["experiment"], row["arm"], row["bucket"], row["config_sha256"]) == (
            "holdout",
            "holdout",
            0.01,
            "ab",
        )
        assert (row["withheld_templates"], row["withheld_probabilities"]) == (["b", ODD], [0.6, 0.1])
        assert (row["templates"], row["suggested_position"]) == ([], None)
        assert (row["shadow_model_version"], row["shadow_templates"], row["shadow_probabilities"]) == (
            "v5",
            [ODD],
            [0.5],
        )
        assert row["shadow_latency_ms"] == 3.5
    assert (last["arm"], last["withheld_templates"], last["shadow_model_version"]) == (None, [], None)


HOLDOUT = Experiments(Holdout("salt", 0.02))


@pytest.mark.parametrize("changed", [Experiments(), Experiments(Holdout("salt", 0.01))])
def test_experiments_that_would_reassign_pairs_are_refused_by_every_server_of_a_store(
    url: str, changed: Experiments
) -> None:
    with open_store(url) as store:
        store.adopt(Experiments())
        assert read_rows(url, tables.experiments) == []
        store.adopt(HOLDOUT)
    with open_store(url) as store:
        with pytest.raises(UserError, match="would reassign pairs: the holdout changes"):
            store.adopt(changed)
        store.adopt(HOLDOUT)
        store.adopt(Experiments(HOLDOUT.holdout, cap_seconds=60))
        store.adopt(HOLDOUT)
    [one, other] = sorted(read_rows(url, tables.experiments), key=lambda row: row["since"])
    assert (one["config_sha256"] == HOLDOUT.sha256, other["config_sha256"] == HOLDOUT.sha256) == (False, True)
    assert datetime.now(UTC) >= other["since"] > one["since"]
