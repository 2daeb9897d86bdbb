"""The event store on both databases: stored records, outages and the errors that are reported."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from event_fixtures import NOON, commit, make_event, make_suggestion, open_store, read_rows, stored_ids
from event_fixtures import url as url
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from postgres import Postgres
from postgres import postgres as postgres
from serving import until
from sqlalchemy import event as listening

from jaxtempl.config.paths import ROOT
from jaxtempl.errors import UserError
from jaxtempl.serve.events import database, tables
from jaxtempl.serve.events import store as events_store
from jaxtempl.serve.events.store import Store, StoreUnavailableError, UnknownSuggestionError
from jaxtempl.serve.schema import Event, FieldError

# A server for the test to kill: it prints each suggestion whose two events are acknowledged and never closes its store.
SERVER = """
import asyncio, sys
from event_fixtures import make_event, make_suggestion
from jaxtempl.serve.events.store import Store

async def serve() -> None:
    store = Store(sys.argv[1])
    while True:
        answered = make_suggestion()
        store.add(answered)
        await store.commit_event(make_event(answered))
        await store.commit_event(make_event(answered, event="edited"))
        print(answered.suggestion_id, flush=True)

asyncio.run(serve())
"""


@contextlib.contextmanager
def locked(url: str) -> Generator[None]:
    """Hold SQLite's write lock, so that the store cannot write."""
    with contextlib.closing(sqlite3.connect(str(sa.make_url(url).database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("COMMIT")


@pytest.fixture
def slow_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gather suggestions until the store is closed, so that a test controls the contents of a group."""
    monkeypatch.setattr(events_store, "GATHER", 600.0)


def test_stored_records_are_read_back_equal(url: str) -> None:
    none = make_suggestion(case_id=None, threshold=None, templates=[], probabilities=[], reason="low", at=LAST)
    answered = [make_suggestion(at=datetime(1, 1, 1, tzinfo=UTC)), none]
    picked = make_event(answered[0], at=NOON.astimezone(timezone(timedelta(hours=9))))
    shown = make_event(answered[1], event="shown", template=None, position=None, at=LAST)
    with open_store(url) as store:
        for record in answered:
            store.add(record)
        assert commit(store, picked, shown) == [None, None]
    kept = {row["suggestion_id"]: row for row in read_rows(url, tables.suggestions)}
    assert kept == {record.suggestion_id: msgspec.structs.asdict(record) for record in answered}
    found = {row["event"]: row for row in read_rows(url, tables.events)}
    for wanted in (picked, shown):
        row = found[wanted.event]
        assert datetime.now(UTC) - row.pop("received") < timedelta(hours=1)
        assert len(row.pop("event_id")) == 64
        assert row == msgspec.structs.asdict(wanted)
        assert row["at"].tzinfo == UTC


LAST = datetime.max.replace(tzinfo=UTC)
TIMES = st.datetimes(
    datetime(1, 1, 2),
    datetime(9999, 12, 30),
    timezones=st.builds(timezone, st.timedeltas(-timedelta(hours=23), timedelta(hours=23))),
)
IDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=200)


EVENTS = st.sampled_from(["opened", "shown", "picked", "edited", "dismissed", "searched", "freehand"])
CHANGES = st.fixed_dictionaries(
    {"event": EVENTS, "at": TIMES, "template": st.none() | IDS, "position": st.none() | st.integers(1, 100)}
)
ANSWERED = st.fixed_dictionaries(
    {"case_id": IDS, "at": TIMES, "probabilities": st.lists(st.floats(0, 1)), "threshold": st.none() | st.floats(0, 1)}
)


def test_any_valid_event_and_its_suggestion_are_read_back(url: str) -> None:
    @settings(max_examples=10)
    @given(st.lists(st.tuples(ANSWERED, CHANGES), max_size=20))
    def check(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        answered = [make_suggestion(**own) for own, _ in pairs]
        wanted = [make_event(record, **changes) for record, (_, changes) in zip(answered, pairs, strict=True)]
        with open_store(url) as store:
            for record in answered:
                store.add(record)
            assert commit(store, *wanted) == [None] * len(wanted)
        of_id = {row["suggestion_id"]: row for row in read_rows(url, tables.suggestions)}
        assert [of_id[record.suggestion_id] for record in answered] == list(map(msgspec.structs.asdict, answered))
        of_id = {row["suggestion_id"]: row for row in read_rows(url, tables.events)}
        found = [Event(**{name: of_id[x.suggestion_id][name] for name in Event.__struct_fields__}) for x in wanted]
        assert found == [replace(event, template=(event.template or "").strip() or None) for event in wanted]

    check()


def test_a_repeated_event_is_stored_once_and_a_different_event_separately(url: str) -> None:
    answered = make_suggestion()
    once, east = make_event(answered), timezone(timedelta(hours=9))
    again = make_event(answered, at=once.at.astimezone(east))
    others = [make_event(answered, position=3), make_event(answered, at=once.at + timedelta(microseconds=1))]
    with open_store(url) as store:
        store.add(answered)
        store.add(answered)
        assert commit(store, once, once, again, *others) == [None] * 5
    with open_store(url) as store:
        store.add(answered)
        assert commit(store, once) == [None]
        assert store.dropped == 0
    assert len(read_rows(url, tables.suggestions)) == 1
    assert len(read_rows(url, tables.events)) == 3


def test_an_event_of_an_unknown_suggestion_is_rejected_and_the_rest_of_its_group_is_stored(url: str) -> None:
    answered = make_suggestion()
    with open_store(url) as store:
        store.add(answered)
        outcomes = commit(
            store, make_event(answered), make_event(make_suggestion()), make_event(answered, event="edited")
        )
    assert [type(outcome) for outcome in outcomes] == [type(None), UnknownSuggestionError, type(None)]
    assert {row["event"] for row in read_rows(url, tables.events)} == {"picked", "edited"}


@pytest.mark.usefixtures("slow_to_write")
def test_records_that_the_database_rejects_do_not_affect_the_rest_of_their_group(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, refused = [make_suggestion(), make_suggestion()], make_suggestion(case_id="secret", tokens=2**70)
    with open_store(url) as store:
        for record in (good[0], refused, good[1]):
            store.add(record)
        outcomes = commit(store, make_event(good[0]), make_event(good[0], position=2**70), make_event(good[1]))
        assert [type(outcome) for outcome in outcomes] == [type(None), FieldError, type(None)]
        assert store.dropped == 1
    assert stored_ids(url) == {record.suggestion_id for record in good}
    assert len(read_rows(url, tables.events)) == 2
    assert "rejected a suggestion" in caplog.text
    assert "secret" not in caplog.text


def test_a_time_that_utc_cannot_represent_is_a_field_error(tmp_path: Path) -> None:
    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))
    with open_store(f"sqlite:///{tmp_path / 'a'}") as store:
        (outcome,) = commit(store, make_event(make_suggestion(), at=early))
    assert isinstance(outcome, FieldError)
    assert outcome.field == "at"


def test_hundreds_of_events_share_a_few_commits_and_find_their_earlier_suggestions(url: str) -> None:
    answered, commits = [make_suggestion() for _ in range(600)], list[sa.Connection]()
    count = commits.append
    with open_store(url) as store:
        listening.listen(sa.Engine, "commit", count)

        async def answer_and_keep() -> None:
            async with asyncio.TaskGroup() as group:
                for record in answered:
                    store.add(record)
                    group.create_task(store.commit_event(make_event(record)))

        try:
            asyncio.run(answer_and_keep())
        finally:
            listening.remove(sa.Engine, "commit", count)
    assert len(read_rows(url, tables.events)) == 600
    assert len(commits) < 100


@pytest.mark.usefixtures("slow_to_write")
def test_close_writes_the_queue_and_later_records_are_dropped(url: str) -> None:
    store, answered = Store(url), [make_suggestion() for _ in range(1200)]
    for record in answered:
        store.add(record)
    assert store.waiting == 1200
    store.close()
    store.close()
    assert stored_ids(url) == {record.suggestion_id for record in answered}
    store.add(make_suggestion())
    assert (store.waiting, store.dropped) == (0, 1)
    (outcome,) = commit(store, make_event(answered[0]))
    assert isinstance(outcome, StoreUnavailableError)


@pytest.mark.usefixtures("slow_to_write")
def test_a_full_queue_drops_and_counts_suggestions_and_rejects_events(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_store, "MAX_WAITING", 2)
    answered = [make_suggestion() for _ in range(3)]
    with open_store(url) as store:
        for record in answered:
            store.add(record)
        assert (store.waiting, store.dropped) == (2, 1)
        (outcome,) = commit(store, make_event(answered[0]))
        assert isinstance(outcome, StoreUnavailableError)
    assert stored_ids(url) == {record.suggestion_id for record in answered[:2]}


def test_an_event_that_waits_too_long_is_not_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer then drops the outcome silently, whether the event loop is still running or closed."""
    url, answered, troubles = f"sqlite:///{tmp_path / 'a'}", make_suggestion(), list[Any]()

    async def given_up_and_sent_again(store: Store) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
        with pytest.raises(StoreUnavailableError):
            await store.commit_event(make_event(answered))
        other.close()
        monkeypatch.setattr(events_store, "PATIENCE", 60.0)
        await store.commit_event(make_event(answered))

    monkeypatch.setattr(events_store, "PATIENCE", 0.05)
    with open_store(url) as store, contextlib.ExitStack() as other:
        other.enter_context(locked(url))
        store.add(answered)
        assert [type(outcome) for outcome in commit(store, make_event(answered))] == [StoreUnavailableError]
        asyncio.run(given_up_and_sent_again(store))
    assert troubles == []
    assert len(read_rows(url, tables.events)) == 1


def patient(url: str) -> str:
    """Return the URL with SQLite's default lock timeout instead of the short one of the outage tests."""
    return url.split("?timeout")[0]


def start_server(url: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SERVER, patient(url)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_killed_servers_of_one_database_have_stored_every_acknowledged_event(url: str) -> None:
    servers, acknowledged = [start_server(url) for _ in range(2)], list[str]()
    for server in servers:
        assert server.stdout
        with server.stdout as said:
            acknowledged += [said.readline().strip() for _ in range(30)]
            server.send_signal(signal.SIGKILL)
            acknowledged += [line.strip() for line in said if line.endswith("\n")]
        server.wait()
    assert len(acknowledged) >= 60
    kept = [(row["suggestion_id"], row["event"]) for row in read_rows(url, tables.events)]
    assert {(key, name) for key in acknowledged for name in ("picked", "edited")} <= set(kept)
    assert set(acknowledged) <= stored_ids(url)


def test_servers_may_create_the_tables_concurrently(url: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        for engine in threads.map(database.open_to_write, [patient(url)] * 8):
            engine.dispose()
    assert read_rows(url, tables.store) == [{"format": 2}]


@pytest.mark.usefixtures("slow_to_write")
def test_an_event_finds_a_suggestion_that_another_server_writes_late(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answered, other = make_suggestion(), Store(url)
    other.add(answered)

    async def until_it_has(_: float) -> None:
        other.close()

    monkeypatch.setattr(asyncio, "sleep", until_it_has)
    with open_store(url) as store:
        assert commit(store, make_event(answered)) == [None]


class Outage:
    """PostgreSQL stopped, or SQLite locked by another program."""

    def __init__(self, url: str, server: Callable[[], Postgres]) -> None:
        self._lock = None if url.startswith("postgresql") else locked(url)
        self._server = server

    def __enter__(self) -> None:
        self._lock.__enter__() if self._lock else self._server().stop()

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error) if self._lock else self._server().start()


@pytest.fixture
def outage(url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Outage:
    monkeypatch.setattr(events_store, "RETRY", 0.1)
    return Outage(url, lambda: request.getfixturevalue("postgres"))


def test_a_database_holds_every_record_once_after_an_outage(
    url: str, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    before, during = make_suggestion(), [make_suggestion() for _ in range(600)]
    with open_store(url) as store:
        store.add(before)
        assert commit(store, make_event(before)) == [None]
        with outage:
            for record in during:
                store.add(record)
            for _ in range(2):
                outcomes = commit(store, make_event(before, event="edited"), make_event(during[-1]))
                assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] * 2
            until(lambda: store.waiting == 600)
            assert not store.is_available
            assert stored_ids(url) == {before.suggestion_id} if url.startswith("sqlite") else True
        until(lambda: commit(store, make_event(during[-1])) == [None])
        assert commit(store, make_event(before), make_event(before, event="edited")) == [None, None]
        assert (store.waiting, store.dropped, store.is_available) == (0, 0, True)
    assert stored_ids(url) == {record.suggestion_id for record in (before, *during)}
    assert sorted(row["event"] for row in read_rows(url, tables.events)) == ["edited", "picked", "picked"]
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "the event store cannot be reached",
        "the event store is available again",
    ]


def test_the_end_of_an_outage_is_detected_with_an_empty_queue(url: str, outage: Outage) -> None:
    answered = make_suggestion()
    with open_store(url) as store:
        store.add(answered)
        assert commit(store, make_event(answered)) == [None]
        with outage:
            assert [type(outcome) for outcome in commit(store, make_event(answered))] == [StoreUnavailableError]
            assert store.waiting == 0
        until(lambda: commit(store, make_event(answered)) == [None])


def test_close_waits_for_the_end_of_an_outage(url: str, outage: Outage) -> None:
    store, answered = Store(url), make_suggestion()
    with ThreadPoolExecutor(1) as thread:
        with outage:
            store.add(answered)
            assert [type(outcome) for outcome in commit(store, make_event(answered))] == [StoreUnavailableError]
            closing = thread.submit(store.close)
            assert wait([closing], timeout=0.5).not_done
        closing.result()
    assert (store.waiting, store.dropped) == (0, 0)
    assert stored_ids(url) == {answered.suggestion_id}


def test_close_during_an_outage_returns_and_counts_the_lost_records(
    url: str, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_store, "CLOSE", 0.5)
    monkeypatch.setattr(events_store, "GROUP", 1)  # after one failure the other groups are not tried
    store = Store(url)
    with outage:
        for _ in range(100):
            store.add(make_suggestion())
        store.close()
    assert (store.waiting, store.dropped) == (0, 100)
    assert stored_ids(url) == set()


@pytest.mark.parametrize("open_it", [database.open_to_read, database.open_to_write])
def test_a_newer_format_is_rejected(url: str, open_it: Callable[[str], sa.Engine]) -> None:
    engine = database.open_to_write(url)
    with engine.begin() as connection:
        connection.execute(sa.update(tables.store).values(format=3))
    engine.dispose()
    with pytest.raises(UserError, match="has format 3; this release reads up to 2"):
        open_it(url)


def test_tables_of_another_program_are_not_changed(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE events (a INTEGER)"))
    engine.dispose()
    with pytest.raises(UserError, match="has a table events of another program"):
        Store(url)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("events.sqlite", "is not the URL of a database"),
        ("postgresql+psycopg://me:hunter2@host:port/db", "is not the URL of a database"),
        ("mysql://me:hunter2@host/db", "has the driver mysql"),
        ("postgresql://me:hunter2@host/db", "has the driver postgresql;"),
        ("sqlite://", "has no file"),
        ("sqlite:///:memory:", "has no file"),
        ("sqlite:////proc/none/a.sqlite", "unable to open"),
        ("sqlite:////etc/passwd", "not a database"),
        ("postgresql+psycopg://me:hunter2@127.0.0.1:1/db", "cannot be used"),
        ("postgresql+psycopg://me@/db?host=/nowhere&password=hunter2", "cannot be used"),
        ("postgresql+psycopg://me:hunter2@/db?colour=red", "cannot be used"),
    ],
)
@pytest.mark.parametrize("open_it", [database.open_to_read, Store])
def test_a_wrong_url_raises_one_line_without_the_password(wrong: str, said: str, open_it: Callable[[str], Any]) -> None:
    if wrong == "sqlite:////proc/none/a.sqlite" and open_it is database.open_to_read:
        said = "does not exist"
    with pytest.raises(UserError, match=said) as error:
        open_it(wrong)
    assert "\n" not in str(error.value)
    assert "hunter2" not in str(error.value)


def test_a_missing_driver_raises_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match="needs psycopg; install"):
        Store("postgresql+psycopg://me:hunter2@host/db")


def test_reading_creates_no_database(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no suggestions|does not exist"):
        database.open_to_read(url)
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="has no suggestions"):
        database.open_to_read(f"sqlite:///{tmp_path / 'empty'}")
    assert (tmp_path / "empty").stat().st_size == 0
    assert not (tmp_path / "events.sqlite").exists()
