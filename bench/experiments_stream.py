"""Measure the reduction of exported events to sums, up to 50 million: `python -m bench.experiments_stream`.

The simulator writes four weeks of a test; copies of them, with other cases, fill the same weeks. Each size is read by a
new process, whose peak memory is its maximum resident set.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np

from bench import common
from jaxtempl.experiments import aggregate, simulate, world
from jaxtempl.experiments.sums import Aggregate

WEEKS, PAIRS_A_WEEK = 4, 10_000
COPIES = (1, 5, 20, 55)
COPY = """
COPY (
    SELECT * REPLACE (md5(suggestion_id || '{i}') AS suggestion_id, case_id || '-{i}' AS case_id)
    FROM '{source}'
) TO '{target}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 10240)
"""


def write_base(path: Path) -> None:
    """Write the events that are copied."""
    null = world.read("null")
    tests = (msgspec.structs.replace(null.tests[0], weeks=WEEKS),)
    simulated = msgspec.structs.replace(null, weeks=WEEKS, pairs_a_week=PAIRS_A_WEEK, tests=tests)
    simulate.simulate(simulated, path, path.with_name("truth"))


def copy(base: Path, folder: Path, count: int) -> None:
    """Add copies of the base until the folder has `count`."""
    for i in range(len(list(folder.glob("*.parquet"))), count):
        duckdb.execute(COPY.format(i=i, source=base, target=folder / f"{i:03d}.parquet"))


def size(found: Aggregate) -> int:
    """Return the bytes of the sums."""
    return sum(column.nbytes for table in (found.pairs, found.templates_chosen) for column in table)


def read(folder: str) -> None:
    """Aggregate a folder and print what it took; runs in a new process."""
    begin = time.perf_counter()
    found = aggregate.aggregate(folder, cap=300.0)
    print(
        json.dumps(
            {
                "events": duckdb.execute(f"SELECT count(event) FROM '{folder}/*.parquet'").fetchall()[0][0],
                "suggestions": int(found.pairs.suggestions.sum()),
                "pairs": len(np.unique(found.pairs.pair)),
                "seconds": time.perf_counter() - begin,
                "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
                "sums_gb": size(found) / 1e9,
                "files_gb": sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e9,
            }
        )
    )


def main() -> None:
    """Measure all sizes."""
    rows, machine = list[dict[str, Any]](), common.machine(["duckdb", "numpy", "pyarrow"])
    with tempfile.TemporaryDirectory() as temporary:
        base, folder = Path(temporary) / "base.parquet", Path(temporary) / "copies"
        folder.mkdir()
        write_base(base)
        for copies in COPIES:
            copy(base, folder, copies)
            rows.append(common.run_child("bench.experiments_stream", str(folder)))
            print(rows[-1], flush=True)
    results = {"memory": aggregate.MEMORY, "rows": rows, "machine": machine}
    common.write("experiments_stream", results, page(rows, machine))


def page(rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """Return the table."""
    cells = [
        f"| {row['events']:,} | {row['files_gb']:.2f} | {row['pairs']:,} | {row['sums_gb']:.3f} | "
        f"{row['seconds']:.0f} | {row['events'] / row['seconds'] / 1e6:.2f} M | {row['peak_gb']:.2f} |"
        for row in rows
    ]
    return f"""# Reducing events to sums

`aggregate` on exports of {WEEKS} weeks of a test, each size in a new process: simulated events, copied with other
cases. DuckDB may use {aggregate.MEMORY} and spills the rest. All figures are computed from the sums: a row
a pair and day, and a row a template, advocate and arm. `python -m bench.experiments_stream` repeats the measurement.

| events | files, GB | pairs | sums, GB | seconds | events a second | peak memory, GB |
|---|---|---|---|---|---|---|
{chr(10).join(cells)}

Each size was measured once, while other programs ran on the machine, so the times are upper bounds.

{common.describe(machine)}
"""


if __name__ == "__main__":
    read(sys.argv[1]) if len(sys.argv) > 1 else main()
