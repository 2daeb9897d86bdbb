"""Latency of a classifier on two threads of a CPU, beside Flax and torch: `python -m bench.latency`.

410m's shape, random weights, batch 1. Each library has a process of its own, which stays, and all are pinned to the
same two cores; one call at a time is made, each side in its turn, round after round, so that what else the machine does
falls on all alike. Ratios are of calls of one round.

On processors that are not Intel's, torch is asked twice: as it is, and with MKL told that the processor is Intel's, for
its float32 products are half as fast otherwise, and a reader's processor may be Intel's.
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
    "fp32": "ONNX Runtime fp32 (attention in parts)",
    "fused": "ONNX Runtime fp32 (attention fused)",
    "fp16": "ONNX Runtime fp16",
    "int8": "ONNX Runtime int8",
}
INT8 = 0.36  # of fp32, wanted
PAUSE = 0.05  # seconds after a call, in which the threads of its library stop spinning

Seconds = dict[str, list[float]]  # by side, a call each round


class Side(NamedTuple):
    """What is asked: a side of a library's process."""

    process: subprocess.Popen[str]
    name: str

    def ask(self, length: int) -> dict[str, Any]:
        """Seconds of a call, and its logits."""
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
    """Answers what is asked on standard input until that ends."""
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
    """A library's process; its sides' names get a mark."""
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
    """Seconds of each side at each length, how far its logits are from Flax's, and the product's speed."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        common.said("bench.latency", "--child=write", f"--folder={folder}", f"--size={size}")
        sides: dict[str, Side] = {}
        for library in classifiers.LIBRARIES:
            sides |= stack.enter_context(started(library, folder))
        if "Intel" not in common.machine(())["processor"] and shutil.which("cc"):
            sides |= stack.enter_context(started("torch", folder, " as Intel", **classifiers.as_intel(folder)))
        product = sides.pop("product")
        speed = 2 * classifiers.PRODUCT**3 / min(product.ask(1)["seconds"] for _ in range(rounds + 1))
        found = {length: turns(sides, length, rounds) for length in LENGTHS}
    return {"operations_per_second": speed, "lengths": found}


def turns(sides: dict[str, Side], length: int, rounds: int) -> dict[str, Any]:
    """After a call of each that warms up: a call of each, every round begun by another side."""
    logits = {name: np.array(side.ask(length)["logits"]) for name, side in sides.items()}
    apart = {name: float(np.abs(x - logits["flax"]).max() / np.abs(logits["flax"]).max()) for name, x in logits.items()}
    seconds: Seconds = {name: [] for name in sides}
    names = list(sides)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(sides[name].ask(length)["seconds"])
        print(length, {name: round(1000 * s[-1]) for name, s in seconds.items()}, file=sys.stderr, flush=True)
    return {"seconds": seconds, "apart": apart}


def summary(measured: dict[str, Any], size: str) -> dict[str, Any]:
    """Medians, ratios to fp32 (of calls in one round, and of the fastest calls), the best of the others, by length."""
    return {str(length): _summary(found, length, measured, size) for length, found in measured["lengths"].items()}


def _summary(found: dict[str, Any], length: int, measured: dict[str, Any], size: str) -> dict[str, Any]:
    seconds: Seconds = found["seconds"]
    ratios = {name: _median_ratio(own, seconds[BASE]) for name, own in seconds.items()}
    least = {name: min(own) / min(seconds[BASE]) for name, own in seconds.items()}
    quarters = statistics.quantiles(seconds[BASE], n=4)
    operations = flops.per_context(steps.architecture(size), length, classifiers.SLOTS) / 3  # forward alone
    return {
        "milliseconds": {name: 1000 * statistics.median(own) for name, own in seconds.items()},
        "ratios": ratios,
        "least": least,
        "best_of_others": _best(ratios),
        "spread": (quarters[2] - quarters[0]) / quarters[1],
        "floor_milliseconds": 1000 * operations / measured["operations_per_second"],
    }


def _best(ratios: dict[str, float]) -> float:
    return min(ratio for name, ratio in ratios.items() if name not in OURS)


def _median_ratio(own: list[float], base: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(own, base, strict=True))


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    told, rounds = [results["summary"][str(length)] for length in LENGTHS], results["rounds"]
    speed, found = results["measured"]["operations_per_second"] / 1e9, results["measured"]["lengths"].values()
    names: list[str] = list(told[0]["ratios"])
    apart = {name: max(each["apart"][name] for each in found) for name in names}
    lengths = " | ".join(f"{length} tokens" for length in LENGTHS)
    return "\n".join(
        [
            "# Latency on the CPU, beside Flax and transformers with torch",
            "",
            f"The {results['size']} shape, random weights, batch 1, {THREADS} threads, the last token's logits. Each",
            f"library has a process of its own on the same cores; {rounds} rounds, a call of each side a round, by",
            "turns; medians of the ratios to fp32 in the same round (lower is better).",
            "`python -m bench.latency` repeats it.",
            "",
            f"| | {lengths} | apart from Flax |",
            "|---" * (len(LENGTHS) + 2) + "|",
            *[_row(OURS.get(n, n), [*(f"{t['ratios'][n]:.2f}" for t in told), f"{apart[n]:.0e}"]) for n in names],
            "",
            f"| | {lengths} |",
            "|---" * (len(LENGTHS) + 1) + "|",
            _row("fp32, ms", [f"{t['milliseconds'][BASE]:,.0f}" for t in told]),
            _row("floor of its products, ms", [f"{t['floor_milliseconds']:,.0f}" for t in told]),
            _row("middle half of fp32's calls, share", [f"{t['spread']:.0%}" for t in told]),
            _row("best of the others (1.00 or more is wanted)", [f"{t['best_of_others']:.2f}" for t in told]),
            _row("the same, of the fastest call of each", [f"{_best(t['least']):.2f}" for t in told]),
            _row(f"int8 ({INT8} or less is wanted)", [f"{t['ratios']['int8']:.2f}" for t in told]),
            _row("the same, of the fastest call of each", [f"{t['least']['int8']:.2f}" for t in told]),
            "",
            f"The floor is of all products at the {speed:,.0f} G operations a second that ONNX Runtime reaches in one",
            "float32 product of 2,048 rows. fp16 is for accelerators: on a CPU ONNX Runtime computes it in float32.",
            "Apart is the largest difference of a logit, as a share of the largest.",
            *_intel(names),
            "",
            common.described(results["machine"]),
            "",
        ]
    )


def _intel(names: list[str]) -> list[str]:
    if not any(name.endswith("as Intel") for name in names):
        return []
    return [
        "",
        "`as Intel`: torch multiplies with Intel's MKL, which leaves AVX-512 alone on other makers' processors; there",
        "it was told that this one is Intel's. These count among the others.",
    ]


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Measures and writes docs/benchmarks/latency.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="410m", help="one of configs/sizes/ (default: 410m)")
    parser.add_argument("--rounds", type=int, default=9, help="calls of each side at each length (default: 9)")
    parser.add_argument("--child", choices=["write", *classifiers.LIBRARIES], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child == "write":
        return classifiers.write(asked.size, Path(asked.folder))
    if asked.child:
        return child(asked.child, asked.folder)
    machine = common.machine(PACKAGES)
    found = measured(asked.size, asked.rounds)
    results = {"machine": machine, "size": asked.size, "threads": THREADS, "rounds": asked.rounds, "measured": found}
    results["summary"] = summary(found, asked.size)
    common.write("latency", results, page(results))


if __name__ == "__main__":
    main()
