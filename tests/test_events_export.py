"""Exports of the event store to Parquet: rows, order, selected days, errors and existing files."""

from datetime import timedelta
from pathlib import Path

import msgspec
import pyarrow.parquet
import pytest
import sqlalchemy as sa
from event_fixtures import NOON, ODD, commit, make_event, make_suggestion, open_store
from event_fixtures import postgres as postgres
from event_fixtures import url as url

from jaxtempl.commands.serve import export_events
from jaxtempl.config.paths import ROOT
from jaxtempl.errors import UsageError, UserError
from jaxtempl.serve.events import export as events_export
from jaxtempl.serve.events.export import SCHEMA, __doc__
from jaxtempl.serve.events.store import StoredSuggestion


def fill(url: str) -> list[StoredSuggestion]:
    """Store a suggestion on each of three days, the last first; the first two have two events each."""
    answered = [make_suggestion(at=NOON + timedelta(days=day)) for day in range(3)]
    with open_store(url) as store:
        for record in reversed(answered):
            store.add(record)
        later = {"event": "edited", "at": NOON + timedelta(minutes=1), "template": "elsewhere", "position": None}
        for record in answered[:2]:
            assert commit(store, make_event(record, **later), make_event(record)) == [None, None]
    return answered


def test_an_export_has_one_row_per_event_in_order(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(events_export, "ROWS", 1)  # splits a suggestion's events into two parts
    answered, out = fill(url), tmp_path / "out" / "events.parquet"
    export_events([f"--store={url}", f"--out={out}"])
    assert f"{out}: 3 suggestions with 4 events of " in capsys.readouterr().out
    table = pyarrow.parquet.read_table(out)
    assert table.schema.metadata[b"format"] == b"1"
    assert table.schema.equals(SCHEMA)
    assert {name for name in table.column_names if f"{name}" not in str(__doc__)} == set()
    found = table.to_pylist()
    first, second, last = answered
    assert [row["suggestion_id"] for row in found] == [x.suggestion_id for x in (first, first, second, second, last)]
    assert [row["event"] for row in found] == ["picked", "edited", "picked", "edited", None]
    assert [row["suggested_position"] for row in found] == [2, None, 2, None, None]
    assert (found[0]["template"], found[0]["position"], found[0]["event_at"]) == (ODD, 2, NOON + timedelta(seconds=5))
    for row, record in zip(found[::2], answered, strict=True):
        kept = msgspec.structs.asdict(record)
        kept["suggested_at"] = kept.pop("at")
        assert {name: row[name] for name in kept} == kept
    assert all(found[-1][name] is None for name in ("event_id", "template", "position", "event_at", "received_at"))


def test_an_export_contains_only_the_requested_days(url: str, tmp_path: Path) -> None:
    answered = fill(url)
    export = [f"--store={url}", f"--out={tmp_path / 'a.parquet'}", "--overwrite"]
    wanted = {
        (): answered,
        ("--since=2026-02-01",): answered[1:],
        ("--until=2026-02-01",): answered[:1],
        ("--since=2026-02-01", "--until=2026-02-02"): answered[1:2],
        ("--since=2027-01-01",): [],
    }
    for flags, expected in wanted.items():
        export_events([*export, *flags])
        found = pyarrow.parquet.read_table(tmp_path / "a.parquet")
        assert set(found["suggestion_id"].to_pylist()) == {record.suggestion_id for record in expected}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--since=yesterday"], "--since='yesterday' is not a day"),
        (["--since=2026-02-02", "--until=2026-02-02"], "is not after"),
        (["--store=sqlite:///none.sqlite"], "none.sqlite does not exist"),
        (["--out=README.md"], "--overwrite replaces it"),
    ],
)
def test_an_invalid_export_is_rejected(flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=said) as error:
        export_events(flags)
    assert isinstance(error.value, UsageError) == ("day" in said or "after" in said)
    assert not Path("none.sqlite").exists()


def test_a_failed_export_keeps_the_existing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, out = f"sqlite:///{tmp_path / 'events.sqlite'}", tmp_path / "out.parquet"
    fill(url)
    out.write_text("older")
    monkeypatch.setattr(events_export, "_with_derived", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_events([f"--store={url}", f"--out={out}", "--overwrite"])
    assert out.read_text() == "older"
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".sqlite"} <= {
        out.name,
        "events.sqlite-wal",
        "events.sqlite-shm",
    }


def test_the_error_of_a_damaged_database_is_one_line(url: str, tmp_path: Path) -> None:
    fill(url)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE events"))
    engine.dispose()
    with pytest.raises(UserError, match="cannot be used: ") as error:
        events_export.export(url, tmp_path / "out.parquet")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.parquet").exists()


def test_an_export_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError):
        export_events(["--store=postgresql+psycopg://me:hunter2@127.0.0.1:1/db?password=hunter2"])
    said = capsys.readouterr()
    assert "me:***@127.0.0.1:1/db" in said.out
    assert "hunter2" not in said.out + said.err
