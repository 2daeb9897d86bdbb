"""Training speed and peak memory against transformers with torch: `python -m bench.train [--former=CHECKOUT]`.

On an accelerator this is `bench.train_gpu`. On the CPU it is the shapes below, float32, random weights, the same batch
and the same AdamW. Each measurement is a separate process, which gives it its own peak of resident memory; the sides
alternate. `--former` adds an older checkout of this project as a side.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import common, steps, train_gpu

ROWS = {"70m": 4, "nano": 8}
LENGTH = 512
ROUNDS, STEPS = 3, {"70m": 4, "nano": 12}
NOTES = common.RESULTS / "train.notes.md"


def child(side: str, size: str) -> None:
    """Measure one side, and print its seconds a step, losses and peak memory as JSON."""
    tokens = np.random.default_rng(0).integers(0, steps.architecture(size).vocabulary, (ROWS[size], LENGTH))
    ready = steps.SIDES[side](steps.StepConfig(size, ROWS[size]), LENGTH)
    losses, seconds = [ready.step(tokens)], []  # the first step compiles
    for _ in range(STEPS[size]):
        start = time.perf_counter()
        losses.append(ready.step(tokens))
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "losses": losses, "peak_mb": ready.peak() / 2**20}))


def main() -> None:
    """Measure the sides in turn and write docs/benchmarks/train.{json,md}; on an accelerator run `train_gpu`."""
    if train_gpu.device()["platform"] != "cpu":
        return train_gpu.main()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--former", type=Path, help="older checkout of this project")
    former = parser.parse_args().former
    machine = common.machine(("jax", "flax", "optax", "torch", "transformers"))
    results = {size: _compare(size, former) for size in ROWS}
    common.write("train", {"machine": machine, "sizes": results}, page(machine, results))


def _compare(size: str, former: Path | None) -> dict[str, Any]:
    """Return the measurements of a size, their medians by side, and each side's medians relative to torch's."""
    sides = ["jaxtempl", "torch", *(["former"] if former else [])]
    rounds: dict[str, list[Any]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side in sides:
            rounds[side].append(_former(former, size) if side == "former" else _measure(side, size))
            print(size, side, rounds[side][-1], file=sys.stderr)
    tokens = ROWS[size] * LENGTH
    speed = {side: tokens / statistics.median(s for r in found for s in r["seconds"]) for side, found in rounds.items()}
    peak = {side: statistics.median(r["peak_mb"] for r in found) for side, found in rounds.items()}
    return {"rounds": rounds, "tokens_per_second": speed, "peak_mb": peak}


def _measure(side: str, size: str) -> dict[str, Any]:
    return common.run_child("bench.train", side, size)


def _former(checkout: Path | None, size: str) -> dict[str, Any]:
    """Measure the older checkout with this file: its `bench.steps` and its package, in its environment."""
    script = '. bin/environment.sh; exec "$@"'
    command = ["sh", "-c", script, "bin/bench", sys.executable, "-P", str(Path(__file__).resolve()), "jaxtempl", size]
    done = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def page(machine: dict[str, Any], results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    return "\n".join(
        [
            "# Training on the CPU, compared with transformers and torch",
            "",
            f"Float32 and AdamW; {', '.join(f'{ROWS[size]} x {LENGTH} tokens a step at {size}' for size in results)}.",
            f"Each side has {ROUNDS} processes, which alternate; each times its steps after the first. Medians.",
            "Repeat with `python -m bench.train`.",
            "",
            *(line for size, found in results.items() for line in _table(size, found)),
            NOTES.read_text().strip(),
            "",
            common.describe(machine),
            "",
        ]
    )


def _table(size: str, found: dict[str, Any]) -> list[str]:
    speed, peak = found["tokens_per_second"], found["peak_mb"]
    return [
        f"## {size}",
        "",
        "| | tokens/s | relative to torch | peak resident MB | relative to torch |",
        "|---|---|---|---|---|",
        *(
            f"| {side} | {speed[side]:,.0f} | {speed[side] / speed['torch']:.2f} | {peak[side]:,.0f} | "
            f"{peak[side] / peak['torch']:.2f} |"
            for side in speed
        ),
        "",
    ]


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) > 2 else main()
