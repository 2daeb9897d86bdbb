"""Training speed and peak memory against transformers with torch: `python -m bench.train`.

On an accelerator this is `bench.train_gpu`. On the CPU it is the 70m shape, 4 rows of 512 tokens, float32, random
weights, the same batch and the same AdamW. Each measurement is a separate process, which gives it its own peak of
resident memory; the two sides alternate.
"""

import json
import statistics
import sys
import time
from typing import Any

import numpy as np

from bench import common, steps, train_gpu

SIZE, ROWS, LENGTH = "70m", 4, 512
ROUNDS, STEPS = 3, 4
SIDES = ("jaxtempl", "torch")


def child(side: str) -> None:
    """Measure one side, and print its seconds a step, losses and peak memory as JSON."""
    tokens = np.random.default_rng(0).integers(0, 50_000, (ROWS, LENGTH))
    ready = steps.SIDES[side](steps.StepConfig(SIZE, ROWS), LENGTH)
    losses, seconds = [ready.step(tokens)], []  # the first step compiles
    for _ in range(STEPS):
        start = time.perf_counter()
        losses.append(ready.step(tokens))
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "losses": losses, "peak_mb": ready.peak() / 2**20}))


def main() -> None:
    """Measure both sides in turn and write docs/benchmarks/train.{json,md}; on an accelerator run `train_gpu`."""
    if train_gpu.device()["platform"] != "cpu":
        return train_gpu.main()
    machine = common.machine(("jax", "flax", "optax", "torch", "transformers"))
    rounds = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side in SIDES:
            rounds[side].append(common.run_child("bench.train", side))
            print(side, rounds[side][-1], file=sys.stderr)
    speed = {
        side: ROWS * LENGTH / statistics.median(s for r in found for s in r["seconds"])
        for side, found in rounds.items()
    }
    peak = {side: statistics.median(r["peak_mb"] for r in found) for side, found in rounds.items()}
    ratio = {"speed": speed["jaxtempl"] / speed["torch"], "peak": peak["jaxtempl"] / peak["torch"]}
    results = {"machine": machine, "rounds": rounds, "tokens_per_second": speed, "peak_mb": peak, "ratio": ratio}
    common.write("train", results, page(machine, speed, peak, ratio))


def page(machine: dict[str, Any], speed: dict[str, float], peak: dict[str, float], ratio: dict[str, float]) -> str:
    """Return the results as Markdown."""
    lines = [f"| {side} | {speed[side]:,.0f} | {peak[side]:,.0f} |" for side in SIDES]
    return "\n".join(
        [
            "# Training on the CPU, compared with transformers and torch",
            "",
            f"The {SIZE} shape, {ROWS} x {LENGTH} tokens a step, float32, AdamW. Each side has {ROUNDS} processes,",
            f"which alternate. Each process times {STEPS} steps after the first; medians.",
            "Repeat with `python -m bench.train`.",
            "",
            "| | tokens/s | peak resident MB |",
            "|---|---|---|",
            *lines,
            f"| **ratio** | **{ratio['speed']:.2f}** (target: >= 1.0) | **{ratio['peak']:.2f}** (target: <= 1.0) |",
            "",
            common.describe(machine),
            "",
        ]
    )


if __name__ == "__main__":
    child(sys.argv[1]) if len(sys.argv) > 1 else main()
