"""Training speed and peak memory on an accelerator against transformers with torch: `python -m bench.train`.

410m, 1.4b and 2.8b at 2,048 tokens, bfloat16, float32 parameters and moments, random weights. First come this project's
microbatches and rematerialisations, the most promising first. Then the fastest alternates with torch at the same
microbatch and the same tokens an update (a smaller microbatch or gradient checkpointing only where that does not fit).
Each measurement is a separate process, which gives it its own peak of memory, and is saved at once, so that a second
start resumes.

Rows are random tokens. `--rows=rows.npy` gives real ones, written by

    rows = Dataset(Path("data")).rows(Tokenizer(tokenizer_path("")), "train")
    np.save("rows.npy", [rows[i]["tokens"] for i in range(1024)])
"""

import argparse
import json
import time
from typing import Any

import numpy as np

from bench import common, steps
from bench.measured import RESULTS, TARGETS, Clock, Results, Setting

ROUNDS = 2  # processes of each side, alternating
TRIES = {  # microbatch rows and rematerialisation
    "410m": [(16, "none"), (16, "attention"), (32, "attention"), (8, "none"), (16, "dots")],
    "1.4b": [(8, "none"), (8, "attention"), (16, "attention"), (4, "none"), (8, "dots")],
    "2.8b": [(4, "none"), (8, "attention"), (16, "attention"), (2, "none"), (8, "full")],
}
HOURS = 3  # limit of a run without bench.gpu


def device() -> dict[str, str]:
    """Return platform and kind of this machine's device, from a separate process, which frees its memory."""
    return common.run_child("bench.train_gpu", "--child=device")


def child(what: str) -> dict[str, Any]:
    """Return the result of a child process: the device, or the measurement of a setting."""
    if what == "device":
        import jax

        local = jax.local_devices()[0]
        return {"platform": local.platform, "kind": local.device_kind}
    arguments = json.loads(what)
    return timed(Setting(*arguments.pop("setting")), **arguments)


def timed(setting: Setting, rows: str, update: int, length: int, warm: int, count: int) -> dict[str, Any]:
    """Return the seconds of each update after the warm-up, and the peak of memory."""
    ready = steps.SIDES[setting.side](steps.StepConfig(setting.size, setting.rows, setting.remat), length)
    tokens = token_rows(rows, update * (warm + count), length, steps.architecture(setting.size).vocabulary)
    losses, seconds = list[float](), list[float]()
    for batch in np.split(tokens, warm + count):
        start = time.perf_counter()
        losses.append(ready.step(batch))  # ends when the update is done
        seconds.append(time.perf_counter() - start)
    facts = {"device": ready.device, "attention": ready.attention, "peak_bytes": ready.peak()}
    return {**facts, "seconds": seconds[warm:], "first_seconds": seconds[:warm], "losses": losses}


def token_rows(source: str, count: int, length: int, vocabulary: int) -> np.ndarray:
    """Return rows [count, length] of a .npy file, repeated as needed, or random ones without a file."""
    if not source:
        return np.random.default_rng(0).integers(0, vocabulary, (count, length))
    rows = np.load(source)[:, :length]
    return rows[np.arange(count) % len(rows)].astype(np.int64)


def fit(results: Results, size: str, clock: Clock) -> None:
    """Measure this project's settings of a size."""
    for rows, remat in TRIES[size]:
        results.measure(Setting("jaxtempl", size, rows, remat), clock)


def compare(results: Results, size: str, clock: Clock) -> None:
    """Measure the fastest setting and torch in turn."""
    ours = results.fastest("jaxtempl", size)
    if ours is None:
        return
    tries = [(ours.rows, "none"), (max(ours.rows // 2, 1), "none"), (ours.rows, "full")]
    for rounds in range(1, ROUNDS + 1):
        results.measure(ours, clock, rounds)
        any(results.measure(Setting("torch", size, rows, remat), clock, rounds) for rows, remat in tries)


def main() -> None:
    """Measure all sizes and write docs/benchmarks/train_gpu.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help=".npy file of token rows (default: random tokens)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child)))
        return
    results, clock = Results(arguments.rows), Clock(HOURS * 3600)
    for part in (fit, compare):
        for size in TARGETS:
            part(results, size, clock)
    print(RESULTS.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
