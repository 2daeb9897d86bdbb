"""TensorRT's support for the graphs of real sizes, without a GPU: tensorrt_rtx builds for an A10, and nothing runs.

    python -m bench.tensorrt_check

Weights are random. One process writes each size, and another builds it and reports its peak memory.
"""

import dataclasses
import itertools
import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import common

NAME = "tensorrt_check"
SIZES = ("410m", "1.4b", "2.8b")
SLOTS, BATCH, CAPABILITY = 1024, 8, "8.6"


@dataclasses.dataclass(frozen=True)
class Random:
    """Lazy random weights of a stack of layers; all differ, because equal ones would be stored once."""

    shape: tuple[int, ...]
    seed: int

    def __getitem__(self, layer: int) -> Any:
        import numpy as np

        drawn = np.random.default_rng((self.seed, layer)).standard_normal(self.shape[1:], np.float32)
        return drawn * np.float32(0.02)


def write(size: str, folder: Path) -> dict[str, Any]:
    """Write the fp16 graph of a size, in a process that may use JAX."""
    import jax

    from converters.onnx import export
    from converters.onnx import graph as onnx_graph
    from converters.onnx.layers import GraphOptions
    from jaxtempl.config.sizes import read_size
    from jaxtempl.models import factory
    from jaxtempl.specs.architecture import NeoXArchitecture

    architecture = NeoXArchitecture(**read_size(size)["architecture"])
    seeds = itertools.count()
    shapes = factory.abstract_params(architecture, SLOTS - 24)
    params = {name: jax.tree.map(lambda leaf: Random(leaf.shape, next(seeds)), part) for name, part in shapes.items()}
    for name in ("embed", "norm", "head"):  # these are not stacked
        params[name] = jax.tree.map(lambda leaf: Random((1, *leaf.shape), next(seeds))[0], shapes[name])
    graph = onnx_graph.build(params, architecture, GraphOptions("template", "fp16", slots=SLOTS))
    export.save(graph, folder)
    return {"nodes": len(graph.graph), "onnx_bytes": sum(path.stat().st_size for path in folder.iterdir())}


def check(folder: Path) -> dict[str, Any]:
    """Build the graph in a folder and report how its nodes run."""
    from converters.tensorrt import check as tensorrt_check
    from converters.tensorrt.check import import_tensorrt_rtx
    from converters.tensorrt.engine import BuildConfig
    from jaxtempl.bundle import bundle
    from jaxtempl.text import window

    config = BuildConfig(window.buckets(window.WINDOW), BATCH, compute_capability=CAPABILITY)
    report = tensorrt_check.check(import_tensorrt_rtx(), folder / bundle.ONNX, config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    operators = {kind: use._asdict() for kind, use in report.operators.items()}
    facts = {**dataclasses.asdict(report), "operators": operators, "kernels": len(report.kernels)}
    return {**facts, "peak_bytes": peak, "buckets": list(config.buckets)}


def page(results: dict[str, Any]) -> str:
    """Render the figures as Markdown."""
    rows = results["sizes"]
    return "\n".join(
        [
            "# TensorRT's support for the graph, without a GPU",
            "",
            f"The fp16 graph of a template classifier with {SLOTS:,} slots and random weights, built by tensorrt_rtx "
            f"{rows[0]['version']} for",
            f"compute capability {CAPABILITY} (the A10's), with a profile of 1 to {BATCH} rows for each of "
            f"{', '.join(map(str, rows[0]['buckets']))} tokens. **Nothing was",
            "run**: the page shows that each operator is supported and which operators are fused, not the speed or",
            "accuracy of an engine. TensorRT itself may build another engine. Repeat with",
            "`python -m bench.tensorrt_check`.",
            "",
            "| size | nodes | ONNX GB | plan GB | parse s | build s | peak GB | kernels | attention in one kernel |",
            "|---|---|---|---|---|---|---|---|---|",
            *[_line(row) for row in rows],
            "",
            "Peak is the peak memory of the build process. Kernels are those of the program for the longest rows. A",
            "node runs in one kernel with others, alone in one kernel, in several kernels, or in none (shapes, and",
            "nodes that became unnecessary).",
            "",
            *[line for row in rows for line in _operators(row)],
            common.describe(results["machine"]),
            "",
        ]
    )


def _line(row: dict[str, Any]) -> str:
    whole = sum(row["attention"].values())
    kernels = ", ".join(f"{name} {count}" for name, count in row["attention"].items())
    sizes = " | ".join(f"{row[key] / 1e9:.2f}" for key in ("onnx_bytes", "bytes"))
    seconds = f"{row['parse_seconds']:.0f} | {row['build_seconds']:.0f}"
    return (
        f"| {row['size']} | {row['nodes']} | {sizes} | {seconds} | {row['peak_bytes'] / 1e9:.1f} | {row['kernels']} "
        f"| {whole} of {whole + len(row['unfused'])} ({kernels}) |"
    )


def _operators(row: dict[str, Any]) -> list[str]:
    lines = [f"## {row['size']}", "", "| operator | nodes | with others | alone | in several | in none |"]
    lines.append("|---|---|---|---|---|---|")
    lines += [
        f"| {kind} | {' | '.join(str(count) for count in use.values())} |" for kind, use in row["operators"].items()
    ]
    return [*lines, ""]


def measure(size: str) -> dict[str, Any]:
    """Measure one size in two processes."""
    with tempfile.TemporaryDirectory() as folder:
        written = common.run_child(f"bench.{NAME}", "write", size, folder)
        return {"size": size, **written, **common.run_child(f"bench.{NAME}", "check", folder)}


def main() -> None:
    """Measure every size and write docs/benchmarks/tensorrt_check.json and .md."""
    machine = common.machine(("tensorrt-rtx-cu13-libs", "onnx", "onnx-ir"))
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        rows.append(measure(size))
        print(f"{size}: {rows[-1]['build_seconds']:.0f} s", flush=True)
    results = {"machine": machine, "sizes": rows}
    common.write(NAME, results, page(results))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", size, folder]:
            print(json.dumps(write(size, Path(folder))))
        case ["check", folder]:
            print(json.dumps(check(Path(folder))))
        case _:
            main()
