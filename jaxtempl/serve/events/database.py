"""Open the database of the event store in SQLite or PostgreSQL; create its tables, or migrate older ones in place."""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import event as listening
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.schema import CreateColumn

from jaxtempl.errors import UserError, first_line
from jaxtempl.serve.events.tables import EXPOSURE, metadata, store, suggestions

FORMAT = 2  # format of the tables: the one written, and the newest one read
DRIVERS = ("sqlite", "postgresql+psycopg")
ALLOWED = "sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"

# WAL: the export reads while a server writes. FULL: acknowledged events survive a power cut; the events of a
# transaction share one sync. SQLite waits 5 s for another writer, the default of Python's driver.
STATEMENTS = {
    "sqlite": ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA foreign_keys=ON"),
    "postgresql": ("SET TIME ZONE 'UTC'",),  # in other zones the end of year 9999 may exceed a datetime
}
# A dead connection is given up after seconds, not after the system's quarter of an hour.
TIMEOUTS = {"sqlite": {}, "postgresql": {"connect_timeout": 5, "tcp_user_timeout": 5000}}
LOCK = 0x6A617874  # PostgreSQL's advisory lock for changes by one server at a time; the number is arbitrary
# A migration waits as long as SQLite does; behind it, servers and exports would wait without end for a table's lock.
LOCK_TIMEOUT = "SET LOCAL lock_timeout = '5s'"


def open_to_write(url: str) -> sa.Engine:
    """Open the database of a URL; create its tables if there are none, and migrate those of an older format.

    Raises:
        UserError: The URL is invalid, or the database is unavailable, read-only, or has other or newer tables.
    """
    engine = _engine(_parse(url), STATEMENTS)
    if engine.dialect.name == "sqlite":
        # Takes the write lock first, and waits for it: SQLite refuses a reader that becomes a writer immediately.
        listening.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    _connect(engine, _create)
    return engine


def open_to_read(url: str) -> sa.Engine:
    """Open an existing database of a URL for reading only; an older format stays as it is.

    Raises:
        UserError: The URL is invalid, or the database is unavailable, or has no event store or a newer one.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise UserError(f"{parsed.database} does not exist; pass the database of bin/serve as --store")
    engine = _engine(parsed, {"sqlite": ("PRAGMA query_only=ON",), "postgresql": STATEMENTS["postgresql"]})
    _connect(engine, _check)
    return engine


def lock(connection: sa.Connection) -> None:
    """Wait until no other server changes the tables or the experiments; SQLite's transactions wait as they begin."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))


@contextlib.contextmanager
def database_errors(engine: sa.Engine) -> Generator[str]:
    """Yield the database's name, and raise the block's database errors as one line for the user.

    Raises:
        UserError: The database is unavailable, or its content is not as expected.
    """
    name = _redacted(engine.url)
    try:
        yield name
    except SQLAlchemyError as error:
        why = first_line(error.orig if isinstance(error, DBAPIError) and error.orig else error)
        raise UserError(f"{name} cannot be used: {why}; check --store") from None


def redact_url(url: str) -> str:
    """Return the URL without its password, and without its parameters, which may contain another.

    Raises:
        UserError: The URL is invalid.
    """
    return _redacted(_parse(url))


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # its text may contain a password, so it is not shown
        raise UserError(f"--store is not the URL of a database; pass {ALLOWED}") from None
    if parsed.drivername not in DRIVERS:
        raise UserError(f"--store has the driver {parsed.drivername}; pass {ALLOWED}")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError("--store has no file, so nothing would be stored; pass sqlite:///FILE")
    return parsed


def _redacted(url: sa.URL) -> str:
    return url.set(query={}).render_as_string(hide_password=True)


def _engine(parsed: sa.URL, statements: Mapping[str, Sequence[str]]) -> sa.Engine:
    backend = parsed.get_backend_name()
    try:
        engine = sa.create_engine(
            parsed,
            connect_args={name: value for name, value in TIMEOUTS[backend].items() if name not in parsed.query},
            pool_pre_ping=True,  # replaces a connection that was lost while idle before a group is written
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
        )
    except ModuleNotFoundError as error:
        raise UserError(f"{_redacted(parsed)} needs {error.name}; install requirements-serve.txt") from None

    def prepare(connection: Any, _: object) -> None:
        for statement in statements[backend]:
            connection.execute(statement)
        connection.commit()

    listening.listen(engine, "connect", prepare)
    return engine


def _connect(engine: sa.Engine, check: Callable[[sa.Connection, str], None]) -> None:
    """Connect for the first time, and check the tables."""
    try:
        with database_errors(engine) as name, engine.begin() as connection:
            check(connection, name)
    except UserError:
        engine.dispose()
        raise


def _create(connection: sa.Connection, name: str) -> None:
    lock(connection)
    existing = metadata.tables.keys() & set(sa.inspect(connection).get_table_names())
    if existing and store.name not in existing:
        raise UserError(f"{name} has a table {min(existing)} of another program; pass an empty database as --store")
    if existing and format_of(connection) < FORMAT:
        _migrate(connection)
    metadata.create_all(connection)
    if connection.scalar(sa.select(store.c.format)) is None:
        connection.execute(sa.insert(store).values(format=FORMAT))
    _check(connection, name)


def _migrate(connection: sa.Connection) -> None:
    """Add what format 2 added. Both databases alter tables within the transaction, so a kill leaves the old format."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(LOCK_TIMEOUT)
    for column in EXPOSURE:
        added = CreateColumn(column).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {suggestions.name} ADD COLUMN {added}")
    connection.execute(sa.update(store).values(format=FORMAT))


def format_of(connection: sa.Connection) -> int:
    """Return the format of the tables."""
    return connection.scalar(sa.select(store.c.format)) or FORMAT


def _check(connection: sa.Connection, name: str) -> None:
    if not sa.inspect(connection).has_table(store.name):
        raise UserError(f"{name} has no suggestions; pass the database of bin/serve as --store")
    found = format_of(connection)
    if found > FORMAT:
        raise UserError(f"{name} has format {found}; this release reads up to {FORMAT}: update jaxtempl")
