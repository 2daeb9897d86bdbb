"""Measure the demonstration: `python -m bench.demo` runs `bin/demo` in a new folder on an idle machine.

It writes docs/benchmarks/demo.{json,md}: the seconds of each step, and the accuracies on unseen cases with the paired
gains. Installation is not counted: run `bin/setup` before.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import common
from jaxtempl import files
from jaxtempl.commands.demo import ADAPT_SHARE, FULL, METRICS, RESULTS
from jaxtempl.evaluation.paired import PairedDifference
from jaxtempl.runs.run import Run
from jaxtempl.specs.interval import Interval

LIMIT = 300  # seconds that the demonstration may take on two idle cores


def main() -> None:
    """Run the demonstration and write its results."""
    machine = common.machine(("jax", "flax", "optax", "onnxruntime", "scikit-learn"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        start = time.perf_counter()
        subprocess.run([str(common.ROOT / "bin" / "demo"), f"--out={out}"], check=True)
        wall = time.perf_counter() - start
        found = files.read_json(out / RESULTS)
        updates = [line for line in Run(out / "adapted").metrics() if "tokens_per_second" in line]
    share = sum(line["seconds"] for line in updates) / (found["total"] - found["seconds"]["prepare"])
    rate = sorted(line["tokens_per_second"] for line in updates)[len(updates) // 2]
    results = {"machine": machine, "amounts": FULL._asdict(), "wall": wall, "adapt_share": share, "rate": rate, **found}
    common.write("demo", results, page(machine, results))


def page(machine: dict[str, Any], results: Mapping[str, Any]) -> str:
    """Return the page of the results."""
    counts, amounts = results["counts"], results["amounts"]
    over = "" if results["wall"] <= LIMIT else f", more than the {LIMIT} that two idle cores may take"
    lines = [
        "# The demonstration",
        "",
        f"`bin/demo` takes {results['wall']:.0f} seconds after installation{over}. "
        f"It adapts `nano` to cases of STAR in {amounts['updates']:,} updates, fine-tunes base and adapted model "
        f"on {amounts['labels']:,} labels each for {amounts['epochs']} epochs, and measures both on "
        f"{counts['contexts']:,} replies of {counts['cases']:,} unseen cases. All settings were chosen on validation "
        "cases. Repeat with `python -m bench.demo`.",
        "",
        *_table(results["accuracies"], Interval.from_json),
        "",
        "Differences in percentage points, paired by reply, from a bootstrap over cases:",
        "",
        *_table(results["differences"], PairedDifference.from_json),
        "",
        "| step | seconds |",
        "|---|---|",
        *(f"| {name} | {seconds:.0f} |" for name, seconds in results["seconds"].items()),
        "",
        f"Adapting ran at {results['rate']:,.0f} tokens/s (median). Its updates took {results['adapt_share']:.2f} of "
        f"the time from their start to the end; the forecast of `bin/demo` assumes {ADAPT_SHARE}.",
        "",
        common.describe(machine),
        "",
    ]
    return "\n".join(lines)


def _table(rows: Mapping[str, Any], read: Callable[[Mapping[str, Any]], object]) -> list[str]:
    return [
        f"| | {' | '.join(METRICS.values())} |",
        "|---" * (1 + len(METRICS)) + "|",
        *(f"| {row} | {' | '.join(format(read(entry[key])) for key in METRICS)} |" for row, entry in rows.items()),
    ]


if __name__ == "__main__":
    main()
