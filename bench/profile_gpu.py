"""Profile an update on this machine's device, by kind of kernel: `python -m bench.profile_gpu 410m 16 none`.

The arguments are size, rows of a microbatch and rematerialisation. The script traces a few updates and writes
docs/benchmarks/profile_gpu.{json,md}: the share of each kind, and the slowest kernels with the model operation that
each belongs to.
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

FLAGS = "--xla_gpu_enable_command_buffer="  # no command buffers: the profile cannot separate the kernels inside one
MICROBATCHES, UPDATES, LENGTH, SHOWN = 2, 3, 2048, 40
DEVICE_LINES = ("Stream", "XLA Ops")  # in a trace on a GPU, on a TPU
MODULES = {"jit_update": "optimizer", "jit_add": "sum of gradients"}
KINDS = {  # by substrings of a kernel's name, instruction or source; the first match counts
    "attention": ("fmha", "flash", "sdpa", "cudnn", "splash"),
    "matrix product": ("gemm", "cutlass", "cublas", "nvjet", "xmma", "dot"),
    "copy": ("memcpy", "memset", "copy", "dynamic-update-slice", "dynamic_update_slice"),
    "reduction": ("reduce",),
    "gather or scatter": ("gather", "scatter"),
}


class DeviceKernel(NamedTuple):
    """A kernel that ran on the device.

    Attributes:
        name: Name of the kernel.
        module: Compiled function that it belongs to.
        operation: HLO instruction.
        source: JAX's name of the model operation.
    """

    name: str
    module: str
    operation: str
    source: str

    @property
    def kind(self) -> str:
        """Key of KINDS, or the kind of a whole module or of the loss."""
        whole = next((kind for module, kind in MODULES.items() if self.module.startswith(module)), None)
        if whole or re.search(r"\bloss\b", self.source):
            return whole or ("loss: matrix product" if self._has(KINDS["matrix product"]) else "loss: rest")
        return next((kind for kind, parts in KINDS.items() if self._has(parts)), "other elementwise")

    def _has(self, parts: tuple[str, ...]) -> bool:
        names = (self.name.lower(), self.operation, self.source.rpartition("/")[2])
        return any(part in name for part in parts for name in names)


def kernels(folder: Path, sources: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[DeviceKernel, float]]:
    """Yield every kernel of a trace with its seconds.

    Args:
        folder: Folder of the trace.
        sources: Model operation of each instruction by compiled function, from `sources_of`.
    """
    for event in _events(folder):
        stats = {str(name): str(value) for name, value in event.stats}
        module, operation = stats.get("hlo_module", "").split("(")[0], stats.get("hlo_op", "")
        source = sources.get(module, {}).get(operation, "")
        yield DeviceKernel(event.name, module, operation, source), event.duration_ns / 1e9


def _events(folder: Path) -> Iterator[Any]:
    """Yield what ran on a device; on the CPU, which a trace does not list as a device, what XLA's code reports."""
    from jax.profiler import ProfileData

    (path,) = folder.rglob("*.xplane.pb")
    planes = list(ProfileData.from_file(str(path)).planes)
    lines = [line for plane in planes if plane.name.startswith("/device:") for line in plane.lines]
    if lines:
        yield from (event for line in lines if line.name.startswith(DEVICE_LINES) for event in line.events)
    for event in (event for plane in planes if not lines for line in plane.lines for event in line.events):
        operation = next((str(value) for name, value in event.stats if name == "hlo_op"), "while")
        if not operation.startswith("while"):  # a loop contains other events
            yield event


def sources_of(program: str) -> dict[str, str]:
    """Return the model operation of each instruction of a compiled program."""
    return dict(re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', program, re.MULTILINE))


def trace(size: str, rows: int, remat: str, length: int = LENGTH) -> dict[str, Any]:
    """Return the seconds of a few updates, in total and by kernel."""
    import time

    import jax

    from bench import steps

    ready, vocabulary = steps.jaxtempl(steps.StepConfig(size, rows, remat), length), steps.architecture(size).vocabulary
    tokens = np.random.default_rng(0).integers(0, vocabulary, (rows * MICROBATCHES, length))
    for _ in range(2):
        ready.step(tokens)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            for _ in range(UPDATES):
                ready.step(tokens)
            wall = time.perf_counter() - start
        seconds, times = collections.defaultdict[DeviceKernel, float](float), collections.Counter[DeviceKernel]()
        for kernel, taken in kernels(Path(folder), {"jit_gradient": sources_of(ready.program())}):
            seconds[kernel] += taken
            times[kernel] += 1
    named = {"size": size, "rows": rows, "remat": remat, "length": length, "device": ready.device}
    return {**named, "updates": UPDATES, "microbatches": MICROBATCHES, "wall": wall, **summary(seconds, times)}


def summary(seconds: Mapping[DeviceKernel, float], times: Mapping[DeviceKernel, int]) -> dict[str, Any]:
    """Return the seconds by kind, and every kernel that took a thousandth or more."""
    kinds = {kernel.kind: 0.0 for kernel in seconds}
    for kernel, taken in seconds.items():
        kinds[kernel.kind] += taken
    whole = sum(seconds.values())
    longest = sorted(seconds, key=lambda kernel: -seconds[kernel])
    rows = [
        {**kernel._asdict(), "kind": kernel.kind, "seconds": seconds[kernel], "times": times[kernel]}
        for kernel in longest
        if seconds[kernel] * 1000 >= whole
    ]
    return {"busy": whole, "kinds": dict(sorted(kinds.items(), key=lambda kind: -kind[1])), "kernels": rows}


def page(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    wall = found["wall"]
    kinds = [f"| {kind} | {taken:.3f} | {taken / wall:.1%} |" for kind, taken in found["kinds"].items()]
    longest = [
        f"| {k['kind']} | {k['seconds'] / wall:.2%} | {k['times']} | `{k['name'][:50]}` | {k['operation']} | "
        f"{k['source'].removeprefix('jit(gradient)/')[-70:]} |"
        for k in found["kernels"][:SHOWN]
    ]
    return "\n".join(
        [
            "# Time of an update, by kind of kernel",
            "",
            f"{found['size']} on one {found['device']}: {found['updates']} updates of {found['microbatches']} x "
            f"{found['rows']} rows of {found['length']:,} tokens, remat {found['remat']}. With tracing and without",
            f"command buffers, this took {wall:.2f} s; kernels ran for {found['busy']:.2f} s of that time.",
            "",
            "| kind | seconds | share of the time |",
            "|---|---|---|",
            *kinds,
            f"| no kernel | {wall - found['busy']:.3f} | {1 - found['busy'] / wall:.1%} |",
            "",
            "| kind | share | times | kernel | instruction | model operation |",
            "|---|---|---|---|---|---|",
            *longest,
            "",
        ]
    )


def main() -> None:
    """Trace, and write docs/benchmarks/profile_gpu.{json,md}."""
    from bench import common

    os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"
    size, rows, remat = sys.argv[1:4]
    found = trace(size, int(rows), remat)
    common.write("profile_gpu", found, page(found))


if __name__ == "__main__":
    main()
