"""Which mesh for which size and machine: writes the tables of docs/scale.md. Nothing is run, no device is needed.

    python -m bench.scale

The bytes are those of `bin/adapt --plan`, by its formula alone (`jaxtempl/planning/memory.py`).
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
ROWS = trainer.MICROBATCH_TOKENS // LENGTH  # of a piece, a device
ENVIRONMENT = {"XLA_CLIENT_MEM_FRACTION": "0.92"}  # as in deploy/
ROOM = 0.9  # of what JAX takes of a device's memory; the rest is for what no formula counts
SHARE = 0.4  # of the peak, that the days are reckoned with


class Machine(NamedTuple):
    """What a training may run on.

    Attributes:
        name: as people say it; TPUs are sold by cores, of which a v5p device has two.
        kind: a key of `DEVICES`.
        devices: as JAX counts them.
    """

    name: str
    kind: str
    devices: int

    @property
    def device(self) -> Accelerator:
        """One of them."""
        return ACCELERATORS[self.kind]


GPUS = {"a100-40": "A100 40 GB", "a100-80": "A100 80 GB", "h100": "H100 80 GB", "h200": "H200"}
MACHINES = (
    *(Machine(f"{count} x {name}", kind, count) for count in (1, 8) for kind, name in GPUS.items()),
    *(Machine(f"v5e-{count}", "v5e", count) for count in (8, 16, 32)),
    *(Machine(f"v5p-{2 * count}", "v5p", count) for count in (4, 8)),
)


def choose(size: str, machine: Machine) -> MicrobatchShape | None:
    """The largest piece up to the default with the least computed again that fits; None where nothing does."""
    for rows in (ROWS, ROWS // 2, ROWS // 4):
        for remat in REMAT:
            piece = _piece(size, machine, rows, remat)
            if fits(machine.device, held(size, machine, piece)):
                return piece
    return None


def _piece(size: str, machine: Machine, rows: int, remat: Remat) -> MicrobatchShape:
    """Return the microbatch of this many rows a device, given `--remat` and the accumulation steps alone."""
    count = BATCH // (rows * machine.devices)
    asked = AdaptConfig(
        size=size, batch_size=BATCH, gradient_accumulation_steps=count, remat=remat, devices=machine.devices
    )
    return estimate.plan_microbatch(asked, _architecture(size), machine.device, LENGTH)


def held(size: str, machine: Machine, piece: MicrobatchShape) -> DeviceMemory:
    """Bytes of a device."""
    return memory.formula_memory(_architecture(size), piece, machine.device.lanes)


def fits(device: Accelerator, held: DeviceMemory) -> bool:
    """Whether that leaves a device the room that it should."""
    return held.total <= ROOM * estimate.usable_memory(device, ENVIRONMENT)[0]


def days(size: str, machine: Machine) -> float:
    """Of Table 1 at SHARE of the machine's peak."""
    operations = STEPS * BATCH * LENGTH * flops.per_token(_architecture(size), LENGTH)
    return operations / (SHARE * machine.device.peak * machine.devices) / 86_400


def _architecture(size: str) -> NeoXArchitecture:
    return NeoXArchitecture(**sizes.read_size(size)["architecture"])


def table(size: str) -> list[str]:
    """A size on all machines, as lines of Markdown."""
    head = ["| machine | mesh | rows a microbatch | `--gradient_accumulation_steps` | `--remat` | state | all | days |"]
    return [*head, "|---|---|---|---|---|---|---|---|", *(_row(size, machine) for machine in MACHINES)]


def _row(size: str, machine: Machine) -> str:
    piece = choose(size, machine)
    if piece is None:
        return f"| {machine.name} | does not fit | | | | | | |"
    found, count = held(size, machine, piece), BATCH // piece.rows
    cut = f"fsdp {piece.shape.fsdp}" if piece.shape.fsdp > 1 else "one device"
    pieces = str(count) if piece.rows == ROWS * machine.devices else f"**{count}**"
    state = f"{(found.total - found.activations) / 1e9:.1f}"
    cells = [machine.name, cut, piece.rows, pieces, piece.remat, state, f"{found.total / 1e9:.0f}"]
    return f"| {' | '.join(map(str, [*cells, f'{days(size, machine):.1f}']))} |"


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
