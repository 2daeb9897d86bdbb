"""Training speed and peak memory on this machine's accelerator beside transformers with torch: `python -m bench.train`.

410m, 1.4b and 2.8b at 2,048 tokens, bfloat16, float32 parameters and moments, random weights. First this project's
microbatches and rematerialisations, the likeliest first; then the fastest beside torch with the same microbatch and
the same tokens an update (less, or with gradient checkpointing, only where that does not fit), by turns. Each
measurement is a process of its own, so that its peak of memory is its own, and is saved at once: started again, this
goes on where it was.

Rows are random tokens. Real ones are given as `--rows=rows.npy`, made where the dataset and what reads it are, by

    rows = Dataset(Path("data")).rows(Tokenizer(tokenizer_path("")), "train")
    np.save("rows.npy", [rows[i]["tokens"] for i in range(1024)])
"""

import argparse
import json
import time
from typing import Any

import numpy as np

from bench import common, steps
from bench.measured import AIMS, RESULTS, Clock, Results, Setting

ROUNDS = 2  # processes a side, by turns
TRIES = {  # microbatch rows and rematerialisation
    "410m": [(16, "none"), (16, "attention"), (32, "attention"), (8, "none"), (16, "dots")],
    "1.4b": [(8, "none"), (8, "attention"), (16, "attention"), (4, "none"), (8, "dots")],
    "2.8b": [(4, "none"), (8, "attention"), (16, "attention"), (2, "none"), (8, "full")],
}
HOURS = 3  # of a run by itself


def device() -> dict[str, str]:
    """Platform and kind of this machine's device, asked in a process of its own: this one leaves its memory alone."""
    return common.alone("bench.train_gpu", "--child=device")


def child(what: str) -> dict[str, Any]:
    """What a process of its own does: names the device, or measures a setting."""
    if what == "device":
        import jax

        found = jax.local_devices()[0]
        return {"platform": found.platform, "kind": found.device_kind}
    asked = json.loads(what)
    return timed(Setting(*asked.pop("setting")), **asked)


def timed(setting: Setting, rows: str, update: int, length: int, warm: int, count: int) -> dict[str, Any]:
    """Seconds of each update after the first ones, and the peak of memory."""
    ready = steps.SIDES[setting.side](steps.Work(setting.size, setting.rows, setting.remat), length)
    tokens = token_rows(rows, update * (warm + count), length, steps.architecture(setting.size).vocabulary)
    losses, seconds = list[float](), list[float]()
    for batch in np.split(tokens, warm + count):
        start = time.perf_counter()
        losses.append(ready.step(batch))  # ends when the update is done
        seconds.append(time.perf_counter() - start)
    told = {"device": ready.device, "attention": ready.attention, "peak_bytes": ready.peak()}
    return {**told, "seconds": seconds[warm:], "first_seconds": seconds[:warm], "losses": losses}


def token_rows(source: str, count: int, length: int, vocabulary: int) -> np.ndarray:
    """Rows [count, length] of a .npy file, over and over, or random ones where none is named."""
    if not source:
        return np.random.default_rng(0).integers(0, vocabulary, (count, length))
    rows = np.load(source)[:, :length]
    return rows[np.arange(count) % len(rows)].astype(np.int64)


def fit(results: Results, size: str, clock: Clock) -> None:
    """Measures this project's settings of a size."""
    for rows, remat in TRIES[size]:
        results.measure(Setting("jaxtempl", size, rows, remat), clock)


def beside(results: Results, size: str, clock: Clock) -> None:
    """Measures the fastest of them and torch, by turns."""
    ours = results.fastest("jaxtempl", size)
    if ours is None:
        return
    tries = [(ours.rows, "none"), (max(ours.rows // 2, 1), "none"), (ours.rows, "full")]
    for rounds in range(1, ROUNDS + 1):
        results.measure(ours, clock, rounds)
        any(results.measure(Setting("torch", size, rows, remat), clock, rounds) for rows, remat in tries)


def main() -> None:
    """Measures all sizes and writes docs/benchmarks/train_gpu.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help=".npy file of token rows (default: random tokens)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(child(asked.child)))
        return
    results, clock = Results(asked.rows), Clock(HOURS * 3600)
    for part in (fit, beside):
        for size in AIMS:
            part(results, size, clock)
    print(RESULTS.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
