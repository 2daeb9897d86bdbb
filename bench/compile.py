"""Compile time of one training step at 6 and at 24 layers of the 70m width: `python -m bench.compile`.

The blocks run in a scan, so compile time must not grow with depth. Compilations of both depths alternate in one
process, with caches cleared before each and no cache on disk.
"""

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from bench import common
from jaxtempl.config import sizes, training
from jaxtempl.models import factory
from jaxtempl.parallel import mesh
from jaxtempl.parallel.mesh import MeshShape
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.training import objectives, step
from jaxtempl.training.optimizer import adamw
from jaxtempl.training.state import TrainState, state_shardings

DEPTHS = (6, 24)
ROUNDS = 5
ROWS, LENGTH = 4, 512
LIMIT = 1.2  # maximum ratio of the medians

Seconds = dict[int, list[float]]


def seconds_to_compile(architecture: NeoXArchitecture) -> float:
    """Return the seconds to trace, lower and compile a training step without caches; arrays are shapes only."""
    objective = objectives.causal_lm(factory.make_graphdef(architecture, architecture.vocabulary))
    optimizer = adamw(training.AdaptConfig(learning_rate=1e-3, warmup_ratio=0.01, weight_decay=0.01), 1000)
    params = factory.abstract_params(architecture, architecture.vocabulary)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(params, jax.eval_shape(optimizer.init, params), count)
    row = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    shardings = state_shardings(mesh.make_mesh(MeshShape(1, 1, 1)), optimizer, params)
    functions: Any = step.compile_step(objective, optimizer, shardings)
    jax.clear_caches()
    start = time.perf_counter()
    gradient = functions.gradient.lower(params, {"tokens": row, "segments": row}, None)
    gradient.compile()
    functions.update.lower(state, gradient.out_info).compile()
    return time.perf_counter() - start


def measure() -> Seconds:
    """Return the seconds of each compilation by depth, except the first, which also loads the compiler."""
    base = NeoXArchitecture(**sizes.read_size("70m")["architecture"])
    times: Seconds = {depth: [] for depth in DEPTHS}
    for _ in range(ROUNDS + 1):
        for depth in DEPTHS:
            times[depth].append(seconds_to_compile(dataclasses.replace(base, layers=depth)))
    return {depth: values[1:] for depth, values in times.items()}


def page(times: Seconds, ratio: float, machine: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [f"| {d} | {statistics.median(t):.2f} | {', '.join(f'{s:.2f}' for s in t)} |" for d, t in times.items()]
    return "\n".join(
        [
            "# Compile time against depth",
            "",
            f"One training step (loss, gradient, AdamW) of the 70m width on {ROWS} x {LENGTH} tokens in float32.",
            f"Each depth is traced, lowered and compiled {ROUNDS} times without caches. The depths alternate in one",
            "process.",
            "",
            "| layers | median seconds | each |",
            "|---|---|---|",
            *lines,
            "",
            f"Ratio of the medians: **{ratio:.2f}** (target: {LIMIT} or less). Repeat with `python -m bench.compile`.",
            "",
            common.describe(machine),
            "",
        ]
    )


def main() -> None:
    """Measure, and write docs/benchmarks/compile.json and its page."""
    jax.config.update("jax_enable_compilation_cache", False)
    machine = common.machine(["jax", "jaxlib", "flax", "optax"])
    times = measure()
    few, many = (statistics.median(times[depth]) for depth in DEPTHS)
    ratio = many / few
    results = {"machine": machine, "seconds": {str(d): t for d, t in times.items()}, "ratio": ratio, "limit": LIMIT}
    common.write("compile", results, page(times, ratio, machine))


if __name__ == "__main__":
    main()
