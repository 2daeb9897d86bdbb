"""Sample suggestions and events, a store for them on either database, and its stored rows."""

import asyncio
import contextlib
import uuid
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from postgres import postgres as postgres

from jaxtempl.serve.events import database, tables
from jaxtempl.serve.events.store import Store, StoredSuggestion
from jaxtempl.serve.schema import Event

NOON = datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)
ODD = 'o\'Neil "x"; -- 💳 \\ %s :a'


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").database()
    return f"sqlite:///{tmp_path / 'events.sqlite'}?timeout=0.2"


def make_suggestion(**changes: Any) -> StoredSuggestion:
    known: dict[str, Any] = {
        "suggestion_id": uuid.uuid4().hex,
        "at": NOON,
        "case_id": ODD,
        "advocate_id": None,
        "model_version": "v1",
        "templates": ["b", ODD, "a"],
        "probabilities": [0.6, 1 / 3, 1e-9],
        "tokens": 400,
        "dropped_messages": 2,
        "k": 3,
        "threshold": 0.1,
        "latency_ms": 1.7,
        "reason": None,
    }
    return StoredSuggestion(**{**known, **changes})


def make_event(of: StoredSuggestion, **changes: Any) -> Event:
    known: dict[str, Any] = {"event": "picked", "at": NOON + timedelta(seconds=5), "template": ODD, "position": 2}
    known.update(changes)
    return Event(suggestion_id=of.suggestion_id, **known)


def commit(store: Store, *wanted: Event) -> list[Any]:
    """Commit the events together; return None for each that is stored, or its error."""

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*map(store.commit_event, wanted), return_exceptions=True)

    return asyncio.run(all_at_once())


def read_rows(url: str, table: sa.Table) -> list[dict[str, Any]]:
    engine = database.open_to_read(url)
    with engine.connect() as connection:
        found = [dict(row) for row in connection.execute(sa.select(table)).mappings()]
    engine.dispose()
    return found


def stored_ids(url: str) -> set[str]:
    """Return the ids of the stored suggestions."""
    return {row["suggestion_id"] for row in read_rows(url, tables.suggestions)}


@contextlib.contextmanager
def open_store(url: str) -> Generator[Store]:
    store = Store(url)
    try:
        yield store
    finally:
        store.close()
