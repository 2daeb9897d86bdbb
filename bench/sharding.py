"""The collectives and memory of a 2.8b training step on up to 64 devices, from the compiled program; nothing runs.

    python -m bench.sharding

Compiles the gradient of a batch at real shapes (64 rows of 2,048 tokens, bfloat16) and the update after it, for meshes
of fake CPU devices. It lists every collective with its bytes and the memory of a device, and exits if `faults` finds
one. XLA for CPUs computes bfloat16 products in float32 and has no pass that turns a sliced all-reduce into a
reduce-scatter, so weights travel here at twice their size and gradients by all-reduce.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import jax

from bench import common, hlo
from jaxtempl.config.sizes import read_size
from jaxtempl.models import factory
from jaxtempl.parallel.mesh import MeshShape, make_mesh
from jaxtempl.planning import compiled_step
from jaxtempl.specs.architecture import NeoXArchitecture

SIZE, ROWS, LENGTH = "2.8b", 64, 2048
MESHES = (MeshShape(1, 8, 1), MeshShape(1, 16, 1), MeshShape(1, 32, 1), MeshShape(1, 64, 1), MeshShape(2, 8, 4))
UNWANTED = {"all-to-all": "moves data between all", "collective-permute": "passes data on"}
SCALARS = 4096  # bytes; counts, norms and the like may go anywhere


def faults(program: str, shapes: Any, rows: int, length: int, shape: MeshShape) -> list[str]:
    """Return the violations of the sharding in a compiled gradient, one line each.

    Args:
        program: Text of the program.
        shapes: Shapes of the parameters.
        rows: Rows of the batch.
        length: Length of a row.
        shape: Shape of the mesh.
    """
    stacks = {leaf.shape for leaf in jax.tree.leaves(shapes["blocks"]) if leaf.ndim > 2}
    whole = [f"a stack of layers is whole: {sizes}" for sizes in {s for _, s in hlo.arrays(program)} & stacks]
    # Tokens of more rows than one device has.
    tokens = {rows // n * length for n in range(1, shape.row_shards) if shape.row_shards % n == 0}
    violations = []
    for found in hlo.collectives(program):
        if found.kind in UNWANTED:
            violations.append(f"{found.kind} {UNWANTED[found.kind]}: {found.arrays}")
        if found.kind == "all-gather" and any(_activation(sizes, rows, length, tokens) for _, sizes in found.arrays):
            violations.append(f"activations are gathered: {found.arrays}")
    return whole + violations


def _activation(sizes: tuple[int, ...], rows: int, length: int, tokens: set[int]) -> bool:
    return length in sizes[1:3] or bool(tokens & set(sizes[:1])) or sizes[:2] == (rows, length)


def measure(architecture: NeoXArchitecture, shape: MeshShape) -> dict[str, Any]:
    """Return a mesh's row of the report; exit if the sharding is violated."""
    mesh = make_mesh(shape)
    computed, updated = (
        compiled_step.compile_gradient(architecture, mesh, ROWS, LENGTH),
        compiled_step.compile_update(architecture, mesh),
    )
    shapes = factory.abstract_params(architecture, architecture.vocabulary)
    violations = faults(computed.text, shapes, ROWS, LENGTH, shape)
    violations += [f"the update moves {c.kind} {c.arrays}" for c in hlo.collectives(updated.text) if c.bytes > SCALARS]
    if violations:
        sys.exit(f"mesh {shape}: " + "; ".join(violations))
    return {
        "mesh": shape._asdict(),
        "state_bytes": compiled_step.state_bytes(architecture, shape),
        "temporary_bytes": computed.temporary,
        "gradient": hlo.listed(computed.text),
        "update": hlo.listed(updated.text),
    }


def page(results: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    rows = results["meshes"]
    held = [
        f"| {MeshShape(**row['mesh'])} | {MeshShape(**row['mesh']).devices} | {row['state_bytes'] / 1e9:.2f} | "
        f"{row['state_bytes'] * MeshShape(**row['mesh']).fsdp * MeshShape(**row['mesh']).tensor / 1e9:.1f} | "
        f"{row['temporary_bytes'] / 1e9:.2f} |"
        for row in rows
    ]
    return "\n".join(
        [
            "# Sharding, from the compiled program",
            "",
            f"{SIZE} at {ROWS} x {LENGTH:,} tokens, compiled for fake CPU devices; nothing was run.",
            "Repeat with `python -m bench.sharding`.",
            "",
            "State is parameters, gradients and both moments, all in float32. Temporary memory is what XLA for the CPU",
            "holds in addition: activations of the device's rows, and the weights of the current layer, in float32.",
            "",
            "| mesh | devices | state, GB a device | state x fsdp x tensor, GB | temporary, GB a device |",
            "|---|---|---|---|---|",
            *held,
            "",
            *[line for row in (rows[-2], rows[-1]) for line in _table(row)],
            common.describe(results["machine"]),
            "",
        ]
    )


def _table(row: dict[str, Any]) -> list[str]:
    lines = [f"## {MeshShape(**row['mesh'])}", "", "| | collective | where | times | MB each | largest array |"]
    lines.append("|---|---|---|---|---|---|")
    for what in ("gradient", "update"):
        for c in row[what]:
            dtype, sizes = max(c["arrays"], key=lambda array: math.prod(array[1]))
            where = "a layer or chunk" if c["in_a_loop"] else "once"
            largest = f"{dtype}[{', '.join(map(str, sizes))}]"
            lines.append(f"| {what} | {c['kind']} | {where} | {c['times']} | {c['bytes'] / 1e6:,.2f} | {largest} |")
    return [*lines, ""]


def main(meshes: Sequence[MeshShape] = MESHES) -> None:
    """Compile, check, and write docs/benchmarks/sharding.json and .md."""
    jax.config.update("jax_num_cpu_devices", max(shape.devices for shape in meshes))
    machine = common.machine(("jax", "flax", "optax"))
    architecture = NeoXArchitecture(**read_size(SIZE)["architecture"])
    rows = []
    for shape in meshes:
        print(f"mesh {shape}", flush=True)
        rows.append(measure(architecture, shape))
    results = {"machine": machine, "size": SIZE, "rows": ROWS, "length": LENGTH, "meshes": rows}
    common.write("sharding", results, page(results))


if __name__ == "__main__":
    main()
