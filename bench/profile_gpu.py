"""Where an update's time goes on this machine's device, by kind of kernel: `python -m bench.profile_gpu 410m 16 none`.

Traces a few updates of a size in microbatches of so many rows with a rematerialisation, and writes
docs/benchmarks/profile_gpu.{json,md}: the share of each kind, and the kernels that take longest with the operation of
the model that each is of. Without the trace at hand, that is what to reason from.
"""

import collections
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FLAGS = "--xla_gpu_enable_command_buffer="  # none: a kernel that runs inside of one is not told apart
MICROBATCHES, UPDATES, LENGTH, SHOWN = 2, 3, 2048, 40
DEVICE_LINES = ("Stream", "XLA Ops")  # of a trace on a GPU, on a TPU
MODULES = {"jit_update": "optimizer", "jit_add": "sum of gradients"}
KINDS = {  # by what the name of a kernel, its instruction or its source has in it, the first that fits
    "attention": ("fmha", "flash", "sdpa", "cudnn", "splash"),
    "matrix product": ("gemm", "cutlass", "cublas", "nvjet", "xmma", "dot"),
    "copy": ("memcpy", "memset", "copy", "dynamic-update-slice", "dynamic_update_slice"),
    "reduction": ("reduce",),
    "gather or scatter": ("gather", "scatter"),
}


class Kernel(NamedTuple):
    """What ran on the device.

    Attributes:
        name: of the kernel.
        module: the compiled function that it is of.
        operation: the HLO instruction.
        source: the operation of the model, as JAX names it.
    """

    name: str
    module: str
    operation: str
    source: str

    @property
    def kind(self) -> str:
        """A key of KINDS, or what a whole module or the loss is."""
        whole = next((kind for module, kind in MODULES.items() if self.module.startswith(module)), None)
        if whole or re.search(r"\bloss\b", self.source):
            return whole or ("loss: matrix product" if self._has(KINDS["matrix product"]) else "loss: rest")
        return next((kind for kind, parts in KINDS.items() if self._has(parts)), "other elementwise")

    def _has(self, parts: tuple[str, ...]) -> bool:
        names = (self.name.lower(), self.operation, self.source.rpartition("/")[2])
        return any(part in name for part in parts for name in names)


def kernels(folder: Path, sources: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[Kernel, float]]:
    """Every kernel of a trace, and its seconds.

    Args:
        folder: that the trace was written to.
        sources: of each compiled function's instructions, from `sources_of`.
    """
    for event in _events(folder):
        stats = {str(name): str(value) for name, value in event.stats}
        module, operation = stats.get("hlo_module", "").split("(")[0], stats.get("hlo_op", "")
        source = sources.get(module, {}).get(operation, "")
        yield Kernel(event.name, module, operation, source), event.duration_ns / 1e9


def _events(folder: Path) -> Iterator[Any]:
    """What ran on a device; on the CPU, which is none of its own, what XLA's code says that it ran."""
    from jax.profiler import ProfileData

    (path,) = folder.rglob("*.xplane.pb")
    planes = list(ProfileData.from_file(str(path)).planes)
    lines = [line for plane in planes if plane.name.startswith("/device:") for line in plane.lines]
    if lines:
        yield from (event for line in lines if line.name.startswith(DEVICE_LINES) for event in line.events)
    for event in (event for plane in planes if not lines for line in plane.lines for event in line.events):
        operation = next((str(value) for name, value in event.stats if name == "hlo_op"), "while")
        if not operation.startswith("while"):  # which holds others
            yield event


def sources_of(program: str) -> dict[str, str]:
    """The operation of the model that each instruction of a compiled program comes from."""
    return dict(re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', program, re.MULTILINE))


def trace(size: str, rows: int, remat: str, length: int = LENGTH) -> dict[str, Any]:
    """Seconds of a few updates, whole and by kernel."""
    import time

    import jax

    from bench import steps

    ready, vocabulary = steps.jaxtempl(steps.Work(size, rows, remat), length), steps.architecture(size).vocabulary
    tokens = np.random.default_rng(0).integers(0, vocabulary, (rows * MICROBATCHES, length))
    for _ in range(2):
        ready.step(tokens)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            for _ in range(UPDATES):
                ready.step(tokens)
            wall = time.perf_counter() - start
        seconds, times = collections.defaultdict[Kernel, float](float), collections.Counter[Kernel]()
        for kernel, taken in kernels(Path(folder), {"jit_gradient": sources_of(ready.program())}):
            seconds[kernel] += taken
            times[kernel] += 1
    named = {"size": size, "rows": rows, "remat": remat, "length": length, "device": ready.device}
    return {**named, "updates": UPDATES, "microbatches": MICROBATCHES, "wall": wall, **summary(seconds, times)}


def summary(seconds: Mapping[Kernel, float], times: Mapping[Kernel, int]) -> dict[str, Any]:
    """Seconds by kind, and every kernel that took a thousandth or more."""
    kinds = {kernel.kind: 0.0 for kernel in seconds}
    for kernel, taken in seconds.items():
        kinds[kernel.kind] += taken
    whole = sum(seconds.values())
    longest = sorted(seconds, key=lambda kernel: -seconds[kernel])
    told = [
        {**kernel._asdict(), "kind": kernel.kind, "seconds": seconds[kernel], "times": times[kernel]}
        for kernel in longest
        if seconds[kernel] * 1000 >= whole
    ]
    return {"busy": whole, "kinds": dict(sorted(kinds.items(), key=lambda kind: -kind[1])), "kernels": told}


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    wall = found["wall"]
    kinds = [f"| {kind} | {taken:.3f} | {taken / wall:.1%} |" for kind, taken in found["kinds"].items()]
    longest = [
        f"| {k['kind']} | {k['seconds'] / wall:.2%} | {k['times']} | `{k['name'][:50]}` | {k['operation']} | "
        f"{k['source'].removeprefix('jit(gradient)/')[-70:]} |"
        for k in found["kernels"][:SHOWN]
    ]
    return "\n".join(
        [
            "# Where an update's time goes",
            "",
            f"{found['size']} on one {found['device']}: {found['updates']} updates of {found['microbatches']} x "
            f"{found['rows']} rows of {found['length']:,} tokens, {found['remat']} computed again. Traced, and without",
            f"command buffers, it took {wall:.2f} s; kernels ran for {found['busy']:.2f} s of it.",
            "",
            "| kind | seconds | share of the time |",
            "|---|---|---|",
            *kinds,
            f"| no kernel | {wall - found['busy']:.3f} | {1 - found['busy'] / wall:.1%} |",
            "",
            "| kind | share | times | kernel | instruction | of the model |",
            "|---|---|---|---|---|---|",
            *longest,
            "",
        ]
    )


def main() -> None:
    """Traces and writes docs/benchmarks/profile_gpu.{json,md}."""
    from bench import common

    os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"
    size, rows, remat = sys.argv[1:4]
    found = trace(size, int(rows), remat)
    common.write("profile_gpu", found, page(found))


if __name__ == "__main__":
    main()
