"""A mesh for each size and machine: writes the tables of docs/scale.md. Nothing runs, no device is needed.

    python -m bench.scale

The bytes are those of `bin/adapt --plan`, by its formula (`jaxtempl/planning/memory.py`).
"""

from typing import NamedTuple

from bench import common
from jaxtempl import files
from jaxtempl.config import sizes
from jaxtempl.config.training import AdaptConfig
from jaxtempl.models.scan import REMAT, Remat
from jaxtempl.planning import estimate, memory
from jaxtempl.planning.memory import DeviceMemory, MicrobatchShape
from jaxtempl.specs import flops
from jaxtempl.specs.accelerators import ACCELERATORS, Accelerator
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.training import trainer

PAGE = common.ROOT / "docs" / "scale.md"
SIZES = ("410m", "1.4b", "2.8b")
STEPS, BATCH, LENGTH = 14_500, 1024, 2048  # Table 1 of the paper
ROWS = trainer.MICROBATCH_TOKENS // LENGTH  # of a microbatch, on one device
ENVIRONMENT = {"XLA_CLIENT_MEM_FRACTION": "0.92"}  # as in deploy/
ROOM = 0.9  # fraction of the memory that JAX takes; the rest is a margin for the formula
SHARE = 0.4  # fraction of the peak that the days assume


class Machine(NamedTuple):
    """A machine to train on.

    Attributes:
        name: Usual name; TPUs are named by cores, of which a v5p device has two.
        kind: Key of `ACCELERATORS`.
        devices: Number of devices, as JAX counts them.
    """

    name: str
    kind: str
    devices: int

    @property
    def device(self) -> Accelerator:
        """One of its devices."""
        return ACCELERATORS[self.kind]


GPUS = {"a100-40": "A100 40 GB", "a100-80": "A100 80 GB", "h100": "H100 80 GB", "h200": "H200"}
MACHINES = (
    *(Machine(f"{count} x {name}", kind, count) for count in (1, 8) for kind, name in GPUS.items()),
    *(Machine(f"v5e-{count}", "v5e", count) for count in (8, 16, 32)),
    *(Machine(f"v5p-{2 * count}", "v5p", count) for count in (4, 8)),
)


def choose(size: str, machine: Machine) -> MicrobatchShape | None:
    """Return the largest microbatch up to the default, with the least remat, that fits; None if none does."""
    for rows in (ROWS, ROWS // 2, ROWS // 4):
        for remat in REMAT:
            microbatch = _microbatch(size, machine, rows, remat)
            if fits(machine.device, device_memory(size, machine, microbatch)):
                return microbatch
    return None


def _microbatch(size: str, machine: Machine, rows: int, remat: Remat) -> MicrobatchShape:
    """Return the microbatch of this many rows a device, given `--remat` and the accumulation steps alone."""
    count = BATCH // (rows * machine.devices)
    config = AdaptConfig(
        size=size, batch_size=BATCH, gradient_accumulation_steps=count, remat=remat, devices=machine.devices
    )
    return estimate.plan_microbatch(config, _architecture(size), machine.device, LENGTH)


def device_memory(size: str, machine: Machine, microbatch: MicrobatchShape) -> DeviceMemory:
    """Return the memory of one device."""
    return memory.formula_memory(_architecture(size), microbatch, machine.device.lanes)


def fits(device: Accelerator, needed: DeviceMemory) -> bool:
    """Return whether the memory leaves the margin free."""
    return needed.total <= ROOM * estimate.usable_memory(device, ENVIRONMENT)[0]


def days(size: str, machine: Machine) -> float:
    """Return the days of Table 1's training at SHARE of the machine's peak."""
    operations = STEPS * BATCH * LENGTH * flops.per_token(_architecture(size), LENGTH)
    return operations / (SHARE * machine.device.peak * machine.devices) / 86_400


def _architecture(size: str) -> NeoXArchitecture:
    return NeoXArchitecture(**sizes.read_size(size)["architecture"])


def table(size: str) -> list[str]:
    """Return the table of a size on all machines, as lines of Markdown."""
    head = ["| machine | mesh | rows a microbatch | `--gradient_accumulation_steps` | `--remat` | state | all | days |"]
    return [*head, "|---|---|---|---|---|---|---|---|", *(_row(size, machine) for machine in MACHINES)]


def _row(size: str, machine: Machine) -> str:
    microbatch = choose(size, machine)
    if microbatch is None:
        return f"| {machine.name} | does not fit | | | | | | |"
    needed, count = device_memory(size, machine, microbatch), BATCH // microbatch.rows
    mesh = f"fsdp {microbatch.mesh.fsdp}" if microbatch.mesh.fsdp > 1 else "one device"
    steps = str(count) if microbatch.rows == ROWS * machine.devices else f"**{count}**"
    state = f"{(needed.total - needed.activations) / 1e9:.1f}"
    cells = [machine.name, mesh, microbatch.rows, steps, microbatch.remat, state, f"{needed.total / 1e9:.0f}"]
    return f"| {' | '.join(map(str, [*cells, f'{days(size, machine):.1f}']))} |"


def filled(page: str) -> str:
    """Return the page with new tables, each between a comment that names its size and an empty line."""
    for size in SIZES:
        before, comment, rest = page.partition(f"<!-- {size} -->\n")
        page = before + comment + "\n".join(table(size)) + rest[rest.index("\n\n") :]
    return page


def main() -> None:
    """Rewrite the tables."""
    with files.atomic_file(PAGE) as temporary:
        temporary.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
