"""All GPU benchmarks in 33 minutes: `python -m bench.gpu [--parts=PART,...] [--out=DIR]`.

Each part has a limit of minutes. Results are saved at once, under docs/benchmarks/ and in --out. Existing measurements
are not repeated, so the same command resumes an interrupted run; `--parts` names the parts to run.

| part | minutes | result |
|---|---|---|
| `parity` | 3 | flash attention against XLA's, chunked loss against plain, bfloat16 against float32 |
| `ceilings` | 1 | speed of matrix products and of memory alone |
| `fit` | 8 | microbatches and rematerialisations that fit, and their speed, by size |
| `compare` | 7 | the fastest of each size against torch |
| `profile` | 2 | time of a 410m update by kind of kernel |
| `flags` | 3 | 410m with XLA flags that may help |
| `vocabulary` | 1 | memory by vocabulary, from this device's compiler |
| `latency` | 8 | latency of a classifier against torch |
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import common, latency_gpu, train_gpu
from bench.common import ChildError
from bench.measured import ENVIRONMENT, TARGETS, Clock, Results
from jaxtempl import files

MINUTES = {"parity": 3, "ceilings": 1, "fit": 8, "compare": 7, "profile": 2, "flags": 3, "vocabulary": 1, "latency": 8}
SAVED = ("gpu", "train_gpu", "profile_gpu", "vocabulary_gpu", "latency_gpu")
SIZE = "410m"  # of parity, profile and flags
FLAGS = (
    "--xla_gpu_enable_triton_gemm=false",
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_enable_command_buffer=",
    "--xla_gpu_enable_cublaslt=true",
    "--xla_gpu_enable_while_loop_unrolling=WHILE_LOOP_UNROLLING_DOUBLE_BUFFER",
)


class Visit:
    """The results of a run on a GPU, saved as they arrive.

    Args:
        rows: A .npy file of token rows; empty for random tokens.
        out: Folder that gets a copy of every file, or None.
    """

    def __init__(self, rows: str, out: Path | None) -> None:
        self._out = out
        path = common.RESULTS / "gpu.json"
        self.found: dict[str, Any] = files.read_json(path) if path.exists() else {}
        self.results = Results(rows, self.copy)

    def record(self, name: str, measure: Callable[[], Any]) -> None:
        """Save the result of a measurement, or its error."""
        try:
            self.found[name] = measure()
        except ChildError as error:
            self.found[name] = {"error": str(error)[-2000:]}
        common.save("gpu", self.found, page(self.found))
        self.copy()

    def copy(self) -> None:
        """Copy the files into the output folder."""
        if self._out:
            self._out.mkdir(parents=True, exist_ok=True)
            for path in (common.RESULTS / f"{name}.{kind}" for name in SAVED for kind in ("json", "md")):
                if path.exists():
                    shutil.copy(path, self._out)


def parity(visit: Visit, clock: Clock) -> None:
    """Run each check in a separate process."""
    for name in ("precision", "loss"):
        visit.record(name, lambda name=name: _child(name, clock))
    visit.record("attention", lambda: _run("bench.attention", clock=clock).splitlines())


def ceilings(visit: Visit, clock: Clock) -> None:
    """Measure the ceilings in a separate process."""
    visit.record("ceilings", lambda: _child("ceilings", clock))


def fit(visit: Visit, clock: Clock) -> None:
    """Fit each size, with an equal share of the time."""
    for left, size in zip(range(len(TARGETS), 0, -1), TARGETS, strict=True):
        train_gpu.fit(visit.results, size, Clock(clock.left / left))


def compare(visit: Visit, clock: Clock) -> None:
    """Compare each size with torch, with an equal share of the time."""
    for left, size in zip(range(len(TARGETS), 0, -1), TARGETS, strict=True):
        train_gpu.compare(visit.results, size, Clock(clock.left / left))


def profile(visit: Visit, clock: Clock) -> None:
    """Profile the fastest setting."""
    best = visit.results.fastest("jaxtempl", SIZE)
    if best:
        arguments = ("bench.profile_gpu", best.size, str(best.rows), best.remat)
        visit.record("profile", lambda: f"{len(_run(*arguments, clock=clock))} characters on a separate page")


def flags(visit: Visit, clock: Clock) -> None:
    """Measure the fastest setting with each flag."""
    best = visit.results.fastest("jaxtempl", SIZE)
    for flag in FLAGS:
        if best:
            visit.results.measure(best._replace(flags=flag), clock)


def vocabulary(visit: Visit, clock: Clock) -> None:
    """Measure memory by vocabulary as far as time allows."""
    visit.record("vocabulary", lambda: f"{len(_run('bench.vocabulary', clock=clock))} characters on a separate page")


def latency(visit: Visit, clock: Clock) -> None:
    """Measure latencies as far as time allows."""
    latency_gpu.measure(clock, visit.copy)


PARTS = {p.__name__: p for p in (parity, ceilings, fit, compare, profile, flags, vocabulary, latency)}


def _run(module: str, *arguments: str, clock: Clock) -> str:
    return common.output_of(module, *arguments, seconds=clock.left, **ENVIRONMENT)


def _child(name: str, clock: Clock) -> dict[str, Any]:
    return json.loads(_run("bench.gpu", f"--child={name}", clock=clock).splitlines()[-1])


def precision(size: str = SIZE, length: int = 2048) -> dict[str, Any]:
    """Compare loss and gradient of one row in bfloat16 with float32."""
    import jax
    import jax.numpy as jnp

    totals = {name: _gradient(size, length, name) for name in ("fp32", "bf16")}
    whole, half = (total.gradient for total in totals.values())
    apart = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), half, whole)
    squares = jax.tree.map(lambda a: jnp.sum(a**2), whole)
    named = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: float(jnp.sqrt(a / b)), apart, squares))
    worst, leaf = max((value, jax.tree_util.keystr(keys)) for keys, value in named)
    distance = float(jnp.sqrt(sum(jax.tree.leaves(apart)) / sum(jax.tree.leaves(squares))))
    losses = {name: float(total.sums["loss"] / total.sums["weight"]) for name, total in totals.items()}
    return {"loss": losses, "gradient_apart": distance, "worst_leaf": leaf, "worst_apart": worst}


def _gradient(size: str, length: int, name: str) -> Any:
    """Return the gradient of one random row, with float32 products not in TF32."""
    import jax
    import numpy as np

    from bench import steps
    from jaxtempl.config.training import AdaptConfig
    from jaxtempl.models import factory
    from jaxtempl.parallel.mesh import MeshShape, make_mesh
    from jaxtempl.training import objectives, state, step
    from jaxtempl.training.optimizer import adamw
    from jaxtempl.training.precision import compute_dtype

    a, mesh = steps.architecture(size), make_mesh(MeshShape(1, 1, 1))
    params, optimizer = factory.random_params(a, a.vocabulary, 0), adamw(AdaptConfig(learning_rate=1e-3), 10)
    objective = objectives.causal_lm(factory.make_graphdef(a, a.vocabulary, compute_dtype(name)))
    functions = step.compile_step(objective, optimizer, state.state_shardings(mesh, optimizer, params))
    tokens = np.random.default_rng(0).integers(0, a.vocabulary, (1, length)).astype(np.uint16)
    with jax.default_matmul_precision("highest" if name == "fp32" else "default"):
        return functions.gradient(params, jax.device_put({"tokens": tokens, "segments": np.ones_like(tokens)}), None)


def loss(tokens: int = 8192, width: int = 1024, columns: int = 50_304) -> dict[str, Any]:
    """Compare the chunked loss in bfloat16 with the plain one: values, and relative distance of the gradients."""
    import jax
    import jax.numpy as jnp

    from bench.vocabulary import plain_cross_entropy
    from jaxtempl.models.cross_entropy import summed_cross_entropy

    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (4, tokens // 4, width)).astype(jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (width, columns)) * 0.02
    targets = jax.random.randint(keys[2], hidden.shape[:2], 0, columns)
    weights = jnp.ones(targets.shape)
    (ours, gradients), (plain, expected) = (
        jax.jit(jax.value_and_grad(f, (0, 1)), static_argnums=4)(
            hidden, kernel, targets, weights, jax.default_backend()
        )
        for f in (summed_cross_entropy, plain_cross_entropy)
    )
    apart = [
        float(jnp.linalg.norm((a - b).astype(jnp.float32).ravel()) / jnp.linalg.norm(b.astype(jnp.float32).ravel()))
        for a, b in zip(gradients, expected, strict=True)
    ]
    return {"chunked": float(ours) / tokens, "plain": float(plain) / tokens, "gradients_apart": apart}


def ceilings_here(side: int = 8192, numbers: int = 2**30, times: int = 10) -> dict[str, Any]:
    """Return bfloat16 operations a second of a matrix product, and bytes a second read and written."""
    import jax
    import jax.numpy as jnp

    matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    vector = jnp.ones(numbers, jnp.bfloat16)
    product, double = jax.jit(jnp.matmul), jax.jit(lambda x: x * 2)
    product_seconds = _seconds(lambda: product(matrix, matrix), times)
    copy_seconds = _seconds(lambda: double(vector), times)
    return {"operations": 2 * side**3 / product_seconds, "bytes": 4 * numbers / copy_seconds}


def _seconds(run: Callable[[], Any], times: int) -> float:
    """Return the mean seconds of consecutive calls, after one that compiles and warms up."""
    run().block_until_ready()
    start = time.perf_counter()
    for _ in range(times - 1):
        run()
    run().block_until_ready()
    return (time.perf_counter() - start) / times


CHILDREN: dict[str, Callable[[], dict[str, Any]]] = {"precision": precision, "loss": loss, "ceilings": ceilings_here}


def page(found: dict[str, Any]) -> str:
    """Return the results that have no other page as Markdown."""
    rows = {name: value for name, value in found.items() if value and name != "format"}
    lines = [f"## {name}\n\n```json\n{json.dumps(value, indent=1)}\n```\n" for name, value in rows.items()]
    others = ", ".join(f"`{name}.md`" for name in SAVED[1:])
    about = f"See also {others}. Repeat with `python -m bench.gpu`."
    return "\n".join(["# Results of the GPU benchmarks", "", about, "", *lines])


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run, in order (default: all)")
    parser.add_argument("--rows", default="", help=".npy file of token rows (default: random tokens)")
    parser.add_argument("--out", type=Path, help="folder for copies of the results")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(CHILDREN[arguments.child]()))
        return
    names = arguments.parts.split(",")
    if set(names) - set(PARTS):
        parser.error(f"--parts={arguments.parts} names an unknown part; the parts are {', '.join(PARTS)}")
    if train_gpu.device()["platform"] == "cpu":
        parser.error("JAX finds no accelerator on this machine; run on a GPU")
    visit, start = Visit(arguments.rows, arguments.out), time.monotonic()
    visit.record("machine", lambda: common.machine(("jax", "jaxlib", "torch", "transformers")))
    for name in names:
        PARTS[name](visit, Clock(60 * MINUTES[name]))
        print(f"{name} done after {(time.monotonic() - start) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
