"""Which mesh for which size and machine: writes the tables of docs/scale.md. Nothing is run, no device is needed.

    python -m bench.scale

Bytes are counted from shapes and shardings, so they are where to start, not what a compiler will take: the state; one
more gradient, while pieces are added up; what the backward pass keeps; the layer in hand, whole; and where weights are
cut, the embedding and the head, whole, with their gradients. All of it is to fit into 0.9 of the device's memory.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bench import common
from jaxtempl import config, files, flops, launch, partition, programs, tasks
from jaxtempl.models import build
from jaxtempl.models.neox import REMAT, Architecture, Remat
from jaxtempl.partition import Shape

PAGE = common.ROOT / "docs" / "scale.md"
SIZES = ("410m", "1.4b", "2.8b")
STEPS, BATCH, LENGTH = 14_500, 1024, 2048  # Table 1 of the paper
ROWS = launch.PIECE // LENGTH  # of a piece, a device
ROOM = 0.9  # of a device's memory
SHARE = 0.4  # of the peak, that the days are reckoned with


class Machine(NamedTuple):
    """What a training may run on.

    Attributes:
        name: as people say it.
        devices: as JAX counts them; TPUs are sold by cores, of which a v5p device has two.
        memory: of a device, in GB.
        kind: a key of `flops.PEAKS`.
    """

    name: str
    devices: int
    memory: int
    kind: str


MACHINES = (
    Machine("1 x A100 40 GB", 1, 40, "NVIDIA A100"),
    Machine("1 x A100 80 GB", 1, 80, "NVIDIA A100"),
    Machine("1 x H100 80 GB", 1, 80, "NVIDIA H100"),
    Machine("1 x H200", 1, 141, "NVIDIA H200"),
    Machine("8 x A100 40 GB", 8, 40, "NVIDIA A100"),
    Machine("8 x A100 80 GB", 8, 80, "NVIDIA A100"),
    Machine("8 x H100 80 GB", 8, 80, "NVIDIA H100"),
    Machine("8 x H200", 8, 141, "NVIDIA H200"),
    Machine("v5e-8", 8, 16, "TPU v5 lite"),
    Machine("v5e-16", 16, 16, "TPU v5 lite"),
    Machine("v5e-32", 32, 16, "TPU v5 lite"),
    Machine("v5p-8", 4, 95, "TPU v5"),
    Machine("v5p-16", 8, 95, "TPU v5"),
)


class Choice(NamedTuple):
    """How to train on a machine.

    Attributes:
        mesh: devices along each axis.
        rows: of a piece, a device.
        remat: what the backward pass computes again.
    """

    mesh: Shape
    rows: int
    remat: Remat

    @property
    def accumulate(self) -> int:
        """Pieces of a batch."""
        return BATCH // (self.rows * self.mesh.rows)


def choose(size: str, machine: Machine) -> Choice | None:
    """The largest piece up to the default with the least computed again that fits; None where nothing does."""
    for rows in (ROWS, ROWS // 2, ROWS // 4):
        for remat in REMAT:
            choice = Choice(_mesh(size, machine.devices, rows), rows, remat)
            if held(size, choice) <= ROOM * machine.memory * 1e9:
                return choice
    return None


@functools.cache
def _mesh(size: str, devices: int, rows: int) -> Shape:
    """What a training takes by itself."""
    shapes = build.abstract_params(_architecture(size), _architecture(size).vocabulary)
    return partition.choose(Shape(0, 0, 1), shapes, rows * devices, devices)


def held(size: str, choice: Choice) -> float:
    """Bytes that a device holds, as the module's docstring counts them."""
    a = _architecture(size)
    activations = kept(size, choice.remat) + kept(size, "none") / a.layers
    ends = 4 * 4 * a.vocabulary * a.hidden if choice.mesh.fsdp > 1 else 0
    return state(size, choice.mesh) * 5 / 4 + activations * choice.rows / ROWS + ends  # a quarter is one gradient


@functools.cache
def state(size: str, mesh: Shape) -> int:
    """Bytes of parameters, gradients and moments that a device holds."""
    return programs.state_bytes(_architecture(size), mesh)


@functools.cache
def kept(size: str, remat: Remat) -> float:
    """Bytes of what the backward pass of ROWS rows is handed by the forward pass, but for the parameters."""
    a = _architecture(size)
    task = tasks.causal_lm(build.graphdef(a, a.vocabulary, jnp.bfloat16, remat))
    params = build.abstract_params(a, a.vocabulary)
    row = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)

    def backward(params: Any, rows: Any) -> Any:
        return jax.vjp(lambda params: task.loss(params, rows)[0], params)[1]

    handed = jax.tree.leaves(jax.eval_shape(backward, params, {"tokens": row, "segments": row}))
    known = {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)}
    return sum(x.size * x.dtype.itemsize for x in handed if (x.shape, x.dtype) not in known)


def days(size: str, machine: Machine) -> float:
    """Of Table 1 at SHARE of the machine's peak."""
    operations = STEPS * BATCH * LENGTH * flops.trained_token(_architecture(size), LENGTH)
    return operations / (SHARE * flops.PEAKS[machine.kind] * machine.devices) / 86_400


def _architecture(size: str) -> Architecture:
    return Architecture(**config.size(size)["architecture"])


def table(size: str) -> list[str]:
    """A size on all machines, as lines of Markdown."""
    head = ["| machine | mesh | rows a piece | `--accumulate` | `--remat` | state | all | days |"]
    return [*head, "|---|---|---|---|---|---|---|---|", *(_row(size, machine) for machine in MACHINES)]


def _row(size: str, machine: Machine) -> str:
    choice = choose(size, machine)
    if choice is None:
        return f"| {machine.name} | does not fit | | | | | | |"
    cut = f"fsdp {choice.mesh.fsdp}" if choice.mesh.fsdp > 1 else "one device"
    pieces = str(choice.accumulate) if choice.rows == ROWS else f"**{choice.accumulate}**"
    cells = [machine.name, cut, choice.rows * choice.mesh.rows, pieces, choice.remat]
    numbers = [f"{state(size, choice.mesh) / 1e9:.1f}", f"{held(size, choice) / 1e9:.0f}", f"{days(size, machine):.1f}"]
    return f"| {' | '.join(map(str, [*cells, *numbers]))} |"


def filled(page: str) -> str:
    """The page with its tables written anew, each after a comment that names its size and before an empty line."""
    for size in SIZES:
        before, comment, rest = page.partition(f"<!-- {size} -->\n")
        page = before + comment + "\n".join(table(size)) + rest[rest.index("\n\n") :]
    return page


def main() -> None:
    """Rewrites the tables."""
    with files.atomic_file(PAGE) as temporary:
        temporary.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
