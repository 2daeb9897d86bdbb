"""Latency of a classifier on two threads of a CPU, compared with Flax and torch: `python -m bench.latency`.

410m's shape, random weights, batch 1. Each library has a persistent process, pinned to the same two cores. The sides
take turns, one call each per round, so that other load on the machine affects all equally. Ratios compare calls of the
same round.

On processors of other makers, torch is measured twice: unchanged, and with MKL detecting an Intel processor.
Otherwise MKL's float32 products are half as fast, and a reader's processor may be Intel's.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import classifiers, common, steps
from jaxtempl.specs import flops

THREADS, LENGTHS = 2, (64, 128, 256, 512)
PACKAGES = ("onnxruntime", "onnx-ir", "jax", "flax", "torch", "transformers")
BASE = "fp32"
OURS = {
    "fp32": "ONNX Runtime fp32 (chunked attention)",
    "fused": "ONNX Runtime fp32 (fused attention)",
    "fp16": "ONNX Runtime fp16",
    "int8": "ONNX Runtime int8",
}
INT8 = 0.36  # target, as a share of fp32
PAUSE = 0.05  # seconds after a call, until the library's threads stop spinning

Seconds = dict[str, list[float]]  # by side, one call per round


class Side(NamedTuple):
    """A side of a library's process."""

    process: subprocess.Popen[str]
    name: str

    def call(self, length: int) -> dict[str, Any]:
        """Return the seconds of a call and its logits."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([self.name, length]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} ended")
        time.sleep(PAUSE)
        return json.loads(line)


def child(library: str, folder: str) -> None:
    """Answer the requests on standard input until it ends."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    sides = classifiers.LIBRARIES[library](Path(folder), THREADS)
    print(json.dumps(list(sides)), flush=True)
    for line in sys.stdin:
        name, length = json.loads(line)
        ids = np.random.default_rng(length).integers(2, 1000, (1, length)).astype(np.int32)
        start = time.perf_counter()
        logits = sides[name](ids)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "logits": logits[0].tolist()}), flush=True)


@contextmanager
def started(library: str, folder: Path, mark: str = "", **environment: str) -> Generator[dict[str, Side]]:
    """Start a library's process; append a mark to the names of its sides."""
    process = subprocess.Popen(
        common.command("bench.latency", f"--child={library}", f"--folder={folder}"),
        cwd=common.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(THREADS), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin
        assert process.stdout
        yield {f"{name}{mark}": Side(process, name) for name in json.loads(process.stdout.readline() or "[]")}
        process.stdin.close()


def measured(size: str, rounds: int) -> dict[str, Any]:
    """Measure each side at each length, the difference of its logits from Flax's, and the speed of a product."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        common.output_of("bench.latency", "--child=write", f"--folder={folder}", f"--size={size}")
        sides: dict[str, Side] = {}
        for library in classifiers.LIBRARIES:
            sides |= stack.enter_context(started(library, folder))
        if "Intel" not in common.machine(())["processor"] and shutil.which("cc"):
            sides |= stack.enter_context(started("torch", folder, " as Intel", **classifiers.as_intel(folder)))
        product = sides.pop("product")
        speed = 2 * classifiers.PRODUCT**3 / min(product.call(1)["seconds"] for _ in range(rounds + 1))
        found = {length: turns(sides, length, rounds) for length in LENGTHS}
    return {"operations_per_second": speed, "lengths": found}


def turns(sides: dict[str, Side], length: int, rounds: int) -> dict[str, Any]:
    """Call each side once per round after a warm-up; another side starts each round."""
    logits = {name: np.array(side.call(length)["logits"]) for name, side in sides.items()}
    difference = {
        name: float(np.abs(x - logits["flax"]).max() / np.abs(logits["flax"]).max()) for name, x in logits.items()
    }
    seconds: Seconds = {name: [] for name in sides}
    names = list(sides)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(sides[name].call(length)["seconds"])
        print(length, {name: round(1000 * s[-1]) for name, s in seconds.items()}, file=sys.stderr, flush=True)
    return {"seconds": seconds, "apart": difference}


def summary(measured: dict[str, Any], size: str) -> dict[str, Any]:
    """Return medians, ratios to fp32 (per round, and of the fastest calls) and the best other library, by length."""
    return {str(length): _summary(found, length, measured, size) for length, found in measured["lengths"].items()}


def _summary(found: dict[str, Any], length: int, measured: dict[str, Any], size: str) -> dict[str, Any]:
    seconds: Seconds = found["seconds"]
    ratios = {name: _median_ratio(calls, seconds[BASE]) for name, calls in seconds.items()}
    fastest = {name: min(calls) / min(seconds[BASE]) for name, calls in seconds.items()}
    quarters = statistics.quantiles(seconds[BASE], n=4)
    operations = flops.per_context(steps.architecture(size), length, classifiers.SLOTS) / 3  # forward pass only
    return {
        "milliseconds": {name: 1000 * statistics.median(calls) for name, calls in seconds.items()},
        "ratios": ratios,
        "least": fastest,
        "best_of_others": _best(ratios),
        "spread": (quarters[2] - quarters[0]) / quarters[1],
        "floor_milliseconds": 1000 * operations / measured["operations_per_second"],
    }


def _best(ratios: dict[str, float]) -> float:
    return min(ratio for name, ratio in ratios.items() if name not in OURS)


def _median_ratio(calls: list[float], base: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(calls, base, strict=True))


def page(results: dict[str, Any]) -> str:
    """Render the results as Markdown."""
    summaries, rounds = [results["summary"][str(length)] for length in LENGTHS], results["rounds"]
    speed, found = results["measured"]["operations_per_second"] / 1e9, results["measured"]["lengths"].values()
    names: list[str] = list(summaries[0]["ratios"])
    difference = {name: max(each["apart"][name] for each in found) for name in names}
    lengths = " | ".join(f"{length} tokens" for length in LENGTHS)
    return "\n".join(
        [
            "# Latency on the CPU, compared with Flax, and transformers with torch",
            "",
            f"The {results['size']} shape with random weights, batch 1 and {THREADS} threads; a call returns the last",
            "token's logits. Each library has a separate process on the same cores, and the sides take turns for",
            f"{rounds} rounds. The table shows medians of the ratios to fp32 in the same round (lower is better).",
            "Repeat with `python -m bench.latency`.",
            "",
            f"| | {lengths} | difference from Flax |",
            "|---" * (len(LENGTHS) + 2) + "|",
            *[
                _row(OURS.get(n, n), [*(f"{t['ratios'][n]:.2f}" for t in summaries), f"{difference[n]:.0e}"])
                for n in names
            ],
            "",
            f"| | {lengths} |",
            "|---" * (len(LENGTHS) + 1) + "|",
            _row("fp32, ms", [f"{t['milliseconds'][BASE]:,.0f}" for t in summaries]),
            _row("roofline of its products, ms", [f"{t['floor_milliseconds']:,.0f}" for t in summaries]),
            _row("interquartile range of fp32, share of the median", [f"{t['spread']:.0%}" for t in summaries]),
            _row("best other library (target: 1.00 or more)", [f"{t['best_of_others']:.2f}" for t in summaries]),
            _row("the same, by each side's fastest call", [f"{_best(t['least']):.2f}" for t in summaries]),
            _row(f"int8 (target: {INT8} or less)", [f"{t['ratios']['int8']:.2f}" for t in summaries]),
            _row("the same, by each side's fastest call", [f"{t['least']['int8']:.2f}" for t in summaries]),
            "",
            f"The roofline is the time of all products at {speed:,.0f} G operations/s, the speed of ONNX Runtime in",
            "one float32 product of 2,048 rows. fp16 is for accelerators: ONNX Runtime computes it in float32 on",
            "a CPU. The difference from Flax is the largest difference of a logit, as a share of the largest logit.",
            *_intel(names),
            "",
            common.describe(results["machine"]),
            "",
        ]
    )


def _intel(names: list[str]) -> list[str]:
    if not any(name.endswith("as Intel") for name in names):
        return []
    return [
        "",
        "`as Intel`: torch multiplies with Intel's MKL, which does not use AVX-512 on other makers' processors. In",
        "these rows MKL detects an Intel processor. They count as other libraries.",
    ]


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Measure and write docs/benchmarks/latency.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="410m", help="one of configs/sizes/ (default: 410m)")
    parser.add_argument("--rounds", type=int, default=9, help="calls of each side at each length (default: 9)")
    parser.add_argument("--child", choices=["write", *classifiers.LIBRARIES], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child == "write":
        return classifiers.write(arguments.size, Path(arguments.folder))
    if arguments.child:
        return child(arguments.child, arguments.folder)
    machine = common.machine(PACKAGES)
    found = measured(arguments.size, arguments.rounds)
    results = {
        "machine": machine,
        "size": arguments.size,
        "threads": THREADS,
        "rounds": arguments.rounds,
        "measured": found,
    }
    results["summary"] = summary(found, arguments.size)
    common.write("latency", results, page(results))


if __name__ == "__main__":
    main()
