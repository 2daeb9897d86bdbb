"""Training steps compiled for TPU slices by the TPU's compiler, which needs no TPU; nothing runs.

    pip install libtpu==0.0.42     # the version for jax 0.10.2; 209 MB
    python -m bench.tpu_compile

Compiles the gradient of a microbatch (4 rows of 2,048 tokens a device, bfloat16) and the update after it. Cases in
docs/benchmarks/tpu_compile.json are not compiled again, so a second run resumes; remove the file to start again.
"""

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from bench import common, hlo
from bench.hlo import Collective
from jaxtempl import files
from jaxtempl.config.sizes import read_size
from jaxtempl.models.scan import Remat
from jaxtempl.parallel.mesh import MeshShape, make_mesh
from jaxtempl.planning import compiled_step
from jaxtempl.planning.compiled_step import CompiledProgram
from jaxtempl.specs.accelerators import ACCELERATORS
from jaxtempl.specs.architecture import NeoXArchitecture

NAME = "tpu_compile"
ROWS, LENGTH = 4, 2048  # of one device
SHOWN = 1e6  # bytes of a collective that the page lists


class Case(NamedTuple):
    """One compilation.

    Attributes:
        size: One of configs/sizes/.
        slice: JAX's name of the chips: kind and grid.
        remat: What the backward pass recomputes, the least that fits.
    """

    size: str
    slice: str
    remat: Remat

    @property
    def chip(self) -> str:
        """Kind of chip."""
        return self.slice.partition(":")[0]

    def __str__(self) -> str:
        """Format the case as `410m on v5e:2x4, remat dots`."""
        return f"{self.size} on {self.slice}, remat {self.remat}"


CASES = (
    Case("410m", "v5e:2x4", "dots"),
    Case("410m", "v5p:2x2x1", "none"),
    Case("1.4b", "v5e:4x4", "dots"),
    Case("1.4b", "v5p:2x2x1", "none"),
    Case("2.8b", "v5e:4x8", "full"),
    Case("2.8b", "v5p:2x2x2", "none"),
)

_SPLASH = re.compile(r"%?(splash_[a-z_]+)[\d.]* = .* custom-call\(")


def splash(program: str) -> dict[str, int]:
    """Return how often each kernel of splash attention occurs in a program."""
    return dict(Counter(_SPLASH.findall(program)))


def measure(case: Case) -> dict[str, Any]:
    """Return one row of the report."""
    start = time.perf_counter()
    devices = compiled_step.describe_slice(case.slice)
    shape = MeshShape(1, len(devices), 1)
    mesh = make_mesh(shape, devices)
    architecture = NeoXArchitecture(**read_size(case.size)["architecture"])
    row = {**case._asdict(), "devices": len(devices), "state_bytes": compiled_step.state_bytes(architecture, shape)}
    gradient = compiled_step.compile_gradient(architecture, mesh, ROWS * len(devices), LENGTH, case.remat)
    update = compiled_step.compile_update(architecture, mesh)
    row |= {"gradient": _memory(gradient), "update": _memory(update), "splash": splash(gradient.text)}
    row["held_bytes"] = peak_bytes(row["state_bytes"], gradient, update)
    row["fits"] = row["held_bytes"] < ACCELERATORS[case.chip].memory
    return {**row, "seconds": round(time.perf_counter() - start)}


def peak_bytes(state: int, gradient: CompiledProgram, update: CompiledProgram) -> int:
    """Return the peak bytes of a device: its state, and what a microbatch or an update needs in addition.

    The summed gradient is a part of the state, the gradient of the microbatch is not.
    """
    return state + max(gradient.outputs + gradient.temporary, update.temporary)


def _memory(program: CompiledProgram) -> dict[str, Any]:
    return {
        "argument_bytes": program.arguments,
        "output_bytes": program.outputs,
        "temporary_bytes": program.temporary,
        "collectives": hlo.listed(program.text),
    }


def page(results: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    rows = results["cases"]
    missing = [str(case) for case in CASES if not _has(rows, case)]
    return "\n".join(
        [
            "# Training steps, compiled for TPUs",
            "",
            f"{ROWS} rows of {LENGTH:,} tokens a device, bfloat16, all devices on `fsdp`, compiled by libtpu without a",
            "TPU. **Nothing was run**, so the time of a step is unknown. Repeat with `python -m bench.tpu_compile`.",
            "",
            "Memory is in GB a device. State is parameters, gradients and both moments, all in float32. Arguments are",
            "the part of the state that a microbatch reads, and its tokens. Peak is the state plus the microbatch's",
            "gradient and temporaries; a case fits if its peak is less than the chip's memory.",
            "",
            "| size | slice | remat | state | arguments | gradient | temporary | peak | chip | fits | splash | s |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
            *[_line(row) for row in rows],
            "",
            *([f"Not compiled yet: {'; '.join(missing)}.", ""] if missing else []),
            "A splash kernel that occurs twice is recomputed in the backward pass; s is the seconds of compilation on",
            "the machine below. The tables below list collectives of 1 MB or more, in the gradient and in the update.",
            "The source only gathers weights and reduce-scatters their gradients. An all-reduce or a",
            "collective-permute of that size is the compiler's replacement for a reduce-scatter. A ring all-reduce",
            "moves about twice as much.",
            "",
            *[line for row in rows for line in _table(row)],
            common.describe(results["machine"]),
            "",
        ]
    )


def _line(row: dict[str, Any]) -> str:
    gradient = row["gradient"]
    sizes = (row["state_bytes"], gradient["argument_bytes"], gradient["output_bytes"], gradient["temporary_bytes"])
    cells = " | ".join(f"{size / 1e9:.2f}" for size in (*sizes, row["held_bytes"]))
    memory = ACCELERATORS[row["slice"].partition(":")[0]].memory / 1e9
    kernels = ", ".join(f"{name.removeprefix('splash_mha_')} {times}" for name, times in row["splash"].items())
    fits = "yes" if row["fits"] else "no"
    return (
        f"| {row['size']} | {row['slice']} ({row['devices']}) | {row['remat']} | {cells} | {memory:.0f} | {fits} "
        f"| {kernels} | {row['seconds']} |"
    )


def _table(row: dict[str, Any]) -> list[str]:
    lines = [f"## {row['size']} on {row['slice']}", "", "| collective | where | times | MB each | largest array |"]
    lines.append("|---|---|---|---|---|")
    for c in row["gradient"]["collectives"] + row["update"]["collectives"]:
        if c["bytes"] >= SHOWN:
            where = "a layer or chunk" if c["in_a_loop"] else "once"
            dtype, sizes = max(c["arrays"], key=lambda array: Collective("", (tuple(array),), False).bytes)
            largest = f"{dtype}[{', '.join(map(str, sizes))}]"
            lines.append(f"| {c['kind']} | {where} | {c['times']} | {c['bytes'] / 1e6:,.1f} | {largest} |")
    return [*lines, ""]


def _has(rows: Sequence[dict[str, Any]], case: Case) -> bool:
    return any(all(row[name] == value for name, value in case._asdict().items()) for row in rows)


def main() -> None:
    """Compile the missing cases, and write docs/benchmarks/tpu_compile.json and .md after each."""
    jax.config.update("jax_platforms", "cpu")  # for this process; the TPU's compiler is used by name
    path = common.RESULTS / f"{NAME}.json"
    machine = common.machine(("jax", "flax", "optax", "libtpu"))
    results: dict[str, Any] = files.read_json(path) if path.exists() else {"machine": machine, "cases": []}
    for case in CASES:
        if not _has(results["cases"], case):
            print(case, flush=True)
            results["cases"].append(measure(case))
            common.write(NAME, results, page(results))


if __name__ == "__main__":
    main()
