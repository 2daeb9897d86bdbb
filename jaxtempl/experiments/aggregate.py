"""Reduce exported events to sums, in one pass and in memory bounded by the number of pairs.

DuckDB reads the Parquet files of `export` week by week: events become a row a suggestion, and suggestions become sums
of pairs and of templates. What does not fit in `MEMORY` is spilled to a temporary folder. Repeated events change
nothing, because every aggregate of a suggestion's events is a minimum, a maximum or an existence.

- The reply of a suggestion is its last `picked`, `searched` or `freehand`; the first two choose a template.
- Its time runs from the first `opened` to the reply, both by the client's clock. Replies without an earlier `opened`
  have no time; they are counted in `unopened` or `early`, and in no other column.
- Hits compare the chosen template with the suggestions: those shown, or in the holdout those withheld.
- Suggestions without an arm, because the advocate or the case is unknown, are counted alone.
"""

import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from jaxtempl.errors import UserError
from jaxtempl.experiments.checks import SKEW
from jaxtempl.experiments.sums import Aggregate, Measures, PairSums, SelectionSums, week_begin
from jaxtempl.serve.events import export

MEMORY = "4GB"  # of DuckDB's tables and hash tables; the rest is spilled
NEWEST = int(export.SCHEMA.metadata[b"format"])
USED = (
    *("suggestion_id", "suggested_at", "advocate_id", "case_id", "experiment", "arm", "model_version"),
    *("templates", "withheld_templates", "event", "template", "event_at", "received_at"),
)

ColumnsT = TypeVar("ColumnsT", PairSums, SelectionSums)

# Names become integers (ENUM), of which aggregates hold any number in constant space; by column of the events.
NAMES: Mapping[str, str] = {
    "advocates": "advocate_id",
    "experiments": "experiment",
    "arms": "arm",
    "versions": "model_version",
    "templates": "template",
}

WEEKS = "SELECT DISTINCT (epoch_us(suggested_at) // 86400000000 + 3) // 7 AS week FROM events ORDER BY week"

SUGGESTIONS = f"""
CREATE OR REPLACE TEMP TABLE suggestions AS
SELECT
    in_advocate AS advocate, case_id, in_experiment AS experiment, in_arm AS arm, in_version AS version, day,
    min(acted) FILTER (event = 'opened') AS opened,
    max(acted) FILTER (is_reply) AS replied,
    arg_max(in_template, acted) FILTER (is_reply) AS template,
    arg_max(place, acted) FILTER (is_reply) AS place,
    coalesce(bool_or(acted - received > {SKEW * 1e6}), false) AS is_ahead
FROM (
    SELECT suggestion_id, case_id, event, enum_code(advocate_id::advocates) AS in_advocate,
        enum_code(experiment::experiments) AS in_experiment, enum_code(model_version::versions) AS in_version,
        if(arm <> '' AND advocate_id <> '' AND case_id <> '', enum_code(arm::arms), NULL) AS in_arm,
        if(event = 'freehand' OR template IS NULL, -1, enum_code(template::templates)::INTEGER) AS in_template,
        coalesce(list_position(if(len(templates) > 0, templates, withheld_templates), template), 0) AS place,
        epoch_us(suggested_at) // 86400000000 AS day,
        epoch_us(event_at) AS acted, epoch_us(received_at) AS received,
        event IN ('picked', 'searched', 'freehand') AS is_reply
    FROM events WHERE suggested_at >= $begin AND suggested_at < $end
)
GROUP BY suggestion_id, in_advocate, case_id, in_experiment, in_arm, in_version, day
"""

TIMED = """
SELECT *, replied - opened >= 0 AS is_timed,
    if(is_timed, (replied - opened) / 1e6, NULL) AS reply_time,
    if(is_timed, least(reply_time, $cap), NULL) AS capped_reply_time,  -- `least` ignores NULL
    if(template >= 0, reply_time, NULL) AS selection_time,
    if(template >= 0, capped_reply_time, NULL) AS capped_time
FROM suggestions WHERE arm IS NOT NULL
"""

HITS = ", ".join(f"count(selection_time) FILTER (place BETWEEN 1 AND {k}) AS hits_{k}" for k in (1, 3, 5))

PAIRS = f"""
SELECT
    advocate, case_id, experiment, arm, version, day,
    count(*) AS suggestions,
    count(*) FILTER (replied IS NOT NULL AND opened IS NULL) AS unopened,
    count(*) FILTER (NOT is_timed) AS early,
    count(*) FILTER (is_ahead) AS ahead,
    count(reply_time) AS replies,
    coalesce(sum(reply_time), 0) AS reply_seconds,
    coalesce(sum(reply_time ** 2), 0) AS reply_squares,
    coalesce(sum(capped_reply_time), 0) AS capped_reply_seconds,
    count(selection_time) AS selections,
    coalesce(sum(selection_time), 0) AS seconds,
    coalesce(sum(selection_time ** 2), 0) AS squares,
    coalesce(sum(capped_time), 0) AS capped_seconds,
    coalesce(sum(capped_time ** 2), 0) AS capped_squares,
    count(*) FILTER (selection_time > $cap) AS over_cap,
    {HITS},
    coalesce(min(opened) / 1e6, 'nan') AS first,
    coalesce(max(replied) / 1e6, 'nan') AS last
FROM ({TIMED})
GROUP BY advocate, case_id, experiment, arm, version, day
"""

TEMPLATES = f"""
SELECT advocate, experiment, arm, version, template, count(*) AS selections, sum(selection_time) AS seconds,
    sum(capped_time) AS capped_seconds, {HITS}
FROM ({TIMED}) WHERE selection_time IS NOT NULL
GROUP BY advocate, experiment, arm, version, template
"""

# A row of pairs has one day, so a week adds rows; a template's sums of several weeks are added.
ALL_PAIRS = """
SELECT *, dense_rank() OVER (ORDER BY advocate, case_id) - 1 AS pair FROM pair_sums
ORDER BY pair, experiment, arm, version, day
"""
TEMPLATE_KEYS = "advocate, experiment, arm, version, template"
ALL_TEMPLATES = f"""
SELECT {TEMPLATE_KEYS}, sum(COLUMNS(* EXCLUDE ({TEMPLATE_KEYS}))) FROM template_sums
GROUP BY {TEMPLATE_KEYS} ORDER BY {TEMPLATE_KEYS}
"""


def aggregate(events: str, cap: float | None = None) -> Aggregate:
    """Return the sums of exported events.

    Args:
        events: Parquet file, folder of them, or glob.
        cap: Cap on times in seconds, or None.

    Raises:
        UserError: There is no file, a file is no export with exposures or is newer than this release, or no suggestion
            has an arm.
    """
    files = [str(path) for path in list_events(events)]
    with tempfile.TemporaryDirectory() as spill, duckdb.connect(config=_settings(spill)) as connection:
        try:
            connection.read_parquet(files, union_by_name=True).create_view("events")
            found = _aggregate(connection, cap)
        except duckdb.Error as error:
            raise UserError(
                f"{events} cannot be read: {str(error).splitlines()[0]}; export it again, or free space in "
                f"{tempfile.gettempdir()}"
            ) from None
    if not len(found.pairs.pair):
        raise UserError(
            f"{events} has no suggestion with an arm ({found.unassigned:,} without): a pair needs an advocate_id, a "
            "case_id, and a server with --experiments"
        )
    return found


def list_events(events: str) -> list[Path]:
    """Return the Parquet files of a path, folder or glob, after checking that they are exports with exposures.

    Raises:
        UserError: As for `aggregate`.
    """
    path = Path(events).expanduser()
    folder, pattern = (path, "*.parquet") if path.is_dir() else (path.parent, path.name)
    found = [path] if path.is_file() else sorted(folder.glob(pattern))
    files = [file for file in found if file.is_file() and not file.name.startswith((".", "_"))]
    if not files:
        raise UserError(f"{events} names no file; pass Parquet of bin/serve events export: a file, a folder or a glob")
    for file in files:
        _check_schema(file)
    return files


def _settings(spill: str) -> dict[str, Any]:
    return {"memory_limit": MEMORY, "temp_directory": spill, "preserve_insertion_order": False}


def _check_schema(path: Path) -> None:
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is no Parquet file: {str(error).splitlines()[0]}; export it again") from None
    written = int((schema.metadata or {}).get(b"format", b"1"))
    if written > NEWEST:
        raise UserError(f"{path} has format {written}; this release reads up to {NEWEST}: update jaxtempl")
    if missing := [name for name in USED if name not in schema.names]:
        raise UserError(f"{path} has no column {missing[0]}; export the events again with this release")


def _aggregate(connection: duckdb.DuckDBPyConnection, cap: float | None) -> Aggregate:
    names = {kind: _enumerate(connection, kind, column) for kind, column in NAMES.items()}
    numbers, unassigned = connection.execute(WEEKS).fetchall(), 0
    if not numbers:
        raise UserError("the events have no row: export a period with suggestions")
    for done, (week,) in enumerate(tqdm(numbers, unit="week", disable=not sys.stderr.isatty(), dynamic_ncols=True)):
        begin = datetime.combine(week_begin(week), time(), UTC)
        connection.execute(SUGGESTIONS, {"begin": begin, "end": begin + timedelta(days=7)})
        unassigned += connection.execute("SELECT count(*) FROM suggestions WHERE arm IS NULL").fetchall()[0][0]
        for table, query in (("pair_sums", PAIRS), ("template_sums", TEMPLATES)):
            verb = f"INSERT INTO {table}" if done else f"CREATE TEMP TABLE {table} AS"
            connection.execute(f"{verb} {query}", {"cap": np.inf if cap is None else cap})
    connection.execute("DROP TABLE suggestions")
    pairs = _columns(connection, ALL_PAIRS, PairSums)
    templates = _columns(connection, ALL_TEMPLATES, SelectionSums)
    return Aggregate(pairs, templates, **names, unassigned=unassigned, cap=cap)


def _enumerate(connection: duckdb.DuckDBPyConnection, kind: str, column: str) -> tuple[str, ...]:
    """Create the type of a column's values, and return them in the order of their codes."""
    query = f"SELECT DISTINCT {column} AS name FROM events WHERE {column} IS NOT NULL ORDER BY name"
    names = tuple(name for (name,) in connection.execute(query).fetchall())
    quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
    connection.execute(f"CREATE TYPE {kind} AS ENUM ({quoted})")
    return names


def _columns(connection: duckdb.DuckDBPyConnection, query: str, kind: type[ColumnsT]) -> ColumnsT:
    """Return the columns of a query; counts are 64-bit integers and sums doubles."""
    names = ", ".join(
        f"{name}::{'DOUBLE' if hint is Measures else 'BIGINT'} AS {name}" for name, hint in kind.__annotations__.items()
    )
    columns: dict[str, Any] = connection.execute(f"SELECT {names} FROM ({query})").fetchnumpy()
    return kind(**columns)
