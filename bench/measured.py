"""The measurements of bench.train_gpu, saved in docs/benchmarks/train_gpu.json and shown on its page."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench import common, steps
from bench.common import ChildError, TookTooLongError
from jaxtempl import files
from jaxtempl.specs import flops

LENGTH, UPDATE = 2048, 64  # tokens of a row, rows of an update
WARM, STEPS = 1, 4  # warm-up updates of a process, and timed ones
LIMIT = 240.0  # maximum seconds of a process
TARGETS = {"410m": 163_000, "1.4b": 54_000, "2.8b": 29_000}  # tokens a second on one H200
TARGET_RATIO = 1.3  # of torch's speed
RESULTS = common.RESULTS / "train_gpu.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")
# JAX gets the device's whole memory, as torch does; processes share compiled programs.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95", "JAX_COMPILATION_CACHE_DIR": "/tmp/jaxtempl-bench"}
COLUMNS = ("side", "size", "rows", "rematerialization", "XLA flags", "attention", "tokens/s", "MFU", "peak, GB", "data")

Row = dict[str, Any]


class Setting(NamedTuple):
    """A configuration to measure.

    Attributes:
        side: `jaxtempl` or `torch`.
        size: One of configs/sizes/.
        rows: Rows of a microbatch.
        remat: What the backward pass recomputes.
        flags: XLA flags in addition to the defaults.
    """

    side: str
    size: str
    rows: int
    remat: str
    flags: str = ""

    def matches(self, row: Row) -> bool:
        """Return whether a row has this setting."""
        return all(row[name] == value for name, value in self._asdict().items())


class Clock:
    """A countdown."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left."""
        return max(self._end - time.monotonic(), 0.0)


class Results:
    """The measurements so far, saved after each one.

    Args:
        source: A .npy file of token rows; empty for random tokens.
        saved: Callback after each save.
    """

    def __init__(self, source: str = "", saved: Callable[[], None] = lambda: None) -> None:
        self._source, self._saved = source, saved
        self._data = Path(source).name if source else "random"
        known: dict[str, Any] = files.read_json(RESULTS) if RESULTS.exists() else {}
        self._machine = known.get("machine") or common.machine(PACKAGES)
        self.rows: list[Row] = known.get("rows", [])
        self.failed: list[Row] = known.get("failed", [])

    def fastest(self, side: str, size: str) -> Setting | None:
        """Return the setting with most tokens a second without flags."""
        row = fastest([row for row in self.rows if row["data"] == self._data], side, size)
        return Setting(side, size, row["rows"], row["remat"]) if row else None

    def measure(self, setting: Setting, clock: Clock, rounds: int = 1) -> bool:
        """Run processes until the setting has had `rounds`, or time is up; return whether it has had any."""
        known = self._find(setting, self.rows)
        while (known["rounds"] if known else 0) < rounds and not self._find(setting, self.failed) and clock.left:
            self._run(setting, known, min(LIMIT, clock.left))
            known = self._find(setting, self.rows)
        return known is not None

    def _find(self, setting: Setting, rows: list[Row]) -> Row | None:
        return next((row for row in rows if row["data"] == self._data and setting.matches(row)), None)

    def _run(self, setting: Setting, known: Row | None, seconds: float) -> None:
        """Run one process; record a timeout as a failure only if the process had the full limit."""
        arguments = {"setting": setting, "rows": self._source, "update": UPDATE, "length": LENGTH, "warm": WARM}
        child = f"--child={json.dumps({**arguments, 'count': STEPS})}"
        flags = {"XLA_FLAGS": setting.flags} if setting.flags else {}
        try:
            measured = common.run_child("bench.train_gpu", child, seconds=seconds, **ENVIRONMENT, **flags)
            self.rows = [*(row for row in self.rows if row is not known), self._row(setting, measured, known)]
        except ChildError as error:
            if seconds == LIMIT or not isinstance(error, TookTooLongError):
                self.failed.append({**setting._asdict(), "data": self._data, "error": _reason(str(error))})
        self._save()

    def _row(self, setting: Setting, measured: Row, known: Row | None) -> Row:
        """Return the row of a process, merged with earlier ones."""
        row: Row = {**setting._asdict(), "length": LENGTH, "update_rows": UPDATE, "data": self._data, "rounds": 1}
        row |= measured
        if known:
            row["seconds"] = [*known["seconds"], *row["seconds"]]
            row["peak_bytes"] = max(known["peak_bytes"], row["peak_bytes"])
            row["rounds"] += known["rounds"]
        row["tokens_per_second"] = UPDATE * LENGTH / statistics.median(row["seconds"])
        operations = row["tokens_per_second"] * flops.per_token(steps.architecture(setting.size), LENGTH)
        peak = flops.peak([row["device"]])
        row["mfu"] = operations / peak if peak else None
        return row

    def _save(self) -> None:
        self.rows.sort(key=lambda row: (row["side"], row["size"], row["flags"], -row["tokens_per_second"]))
        results = {"machine": self._machine, "rows": self.rows, "failed": self.failed}
        common.save("train_gpu", results, page(results))
        self._saved()


def _reason(error: str) -> str:
    """Return the last line of a traceback that names an error."""
    lines = [line for line in error.splitlines() if "Error" in line or "RESOURCE_EXHAUSTED" in line]
    return (lines or [error.strip()[-300:]])[-1][:300]


def fastest(rows: list[Row], side: str, size: str) -> Row | None:
    """Return the row with most tokens a second without flags."""
    candidates = [row for row in rows if (row["side"], row["size"], row["flags"]) == (side, size, "")]
    return max(candidates, key=lambda row: row["tokens_per_second"], default=None)


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    rows, failed = results["rows"], results["failed"]
    return "\n".join(
        [
            "# Training on an accelerator, compared with transformers and torch",
            "",
            f"Rows of {LENGTH:,} tokens, {UPDATE} an update, on one {rows[0]['device'] if rows else 'device'}.",
            "Computation is in bfloat16 (torch: autocast) with float32 parameters and moments, AdamW. torch is",
            f"compiled, with sdpa attention and fused AdamW. Medians of {STEPS} updates a process after {WARM} for",
            "warm-up. MFU counts the full attention square, and no operation twice.",
            "Repeat with `python -m bench.train`.",
            "",
            "| size | jaxtempl, tokens/s | MFU | target on an H200 | torch, tokens/s | MFU | ratio |",
            "|---" * 7 + "|",
            *[_compared(rows, size) for size in TARGETS],
            "",
            f"The target ratio is {TARGET_RATIO}.",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---" * len(COLUMNS) + "|",
            *[_line(row, f"{row['tokens_per_second']:,.0f}") for row in rows],
            *[_line(row, f"failed: {row['error'][:80].replace('|', '/')}") for row in failed],
            "",
            common.describe(results["machine"]),
            "",
        ]
    )


def _compared(rows: list[Row], size: str) -> str:
    ours, theirs = (fastest(rows, side, size) for side in ("jaxtempl", "torch"))
    speeds = [f"{row['tokens_per_second']:,.0f} | {_share(row)}" if row else " | " for row in (ours, theirs)]
    ratio = f"{ours['tokens_per_second'] / theirs['tokens_per_second']:.2f}" if ours and theirs else ""
    return f"| {size} | {speeds[0]} | {TARGETS[size]:,} | {speeds[1]} | {ratio} |"


def _line(row: Row, speed: str) -> str:
    named = [str(row[name]) for name in ("side", "size", "rows", "remat", "flags")]
    peak = f"{row['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in row else ""
    return f"| {' | '.join([*named, row.get('attention', ''), speed, _share(row), peak, row.get('data', '')])} |"


def _share(row: Row) -> str:
    return f"{row['mfu']:.1%}" if row.get("mfu") else ""
