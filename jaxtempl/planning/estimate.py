"""`bin/adapt --plan`: what a training takes on devices that need not be there; nothing is run, read or written.

Of a dataset only its numbers are looked at, and where there is none the recipe's steps say how many tokens there are.
"""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtempl.config import mixture
from jaxtempl.config.training import AdaptConfig
from jaxtempl.data import loader
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UsageError, UserError
from jaxtempl.models import factory, flash_attention
from jaxtempl.models.scan import REMAT
from jaxtempl.parallel import mesh, rules
from jaxtempl.planning import memory
from jaxtempl.planning.memory import DeviceMemory, MicrobatchShape
from jaxtempl.specs import flops
from jaxtempl.specs.accelerators import ACCELERATORS, Accelerator
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.training import adapt, initialization, trainer

MFU = 0.4  # assumed where none is measured and none is given
MORE = (2, 4, 8, 16, 32, 64)  # times the devices that are tried where a training does not fit on those there are


class TrainingSize(NamedTuple):
    """How much there is to train on.

    Attributes:
        steps: updates.
        length: tokens of a row.
        source: where these come from.
    """

    steps: int
    length: int
    source: str


class PlanLine(NamedTuple):
    """A line of the plan: what, how much, and where that comes from."""

    name: str
    value: str
    source: str = ""


def print_plan(asked: AdaptConfig) -> None:
    """Prints the plan.

    Raises:
        UserError: no device is named, or the flags fit no mesh.
    """
    jax.config.update("jax_platforms", "cpu")  # an accelerator of this machine stays free
    print(format_plan(asked))


def format_plan(asked: AdaptConfig) -> str:
    """The plan as text."""
    device = _device(asked)
    a = initialization.identify_model(asked.size, asked.weights, asked.start, asked.revision).architecture
    if not isinstance(a, NeoXArchitecture):
        raise UsageError(f"--plan knows what GPT-NeoX takes, and {asked.size} is of another family; name a Pythia size")
    work = _work(asked, a)
    piece = plan_microbatch(asked, a, device, work.length)
    held = (memory.compiler_memory if device.slices else memory.estimate_memory)(a, piece, device)
    lines = [*_model(asked, a, work), *_mesh(asked, piece), *_memory(held), *_verdict(asked, a, device, piece, held)]
    return _aligned([*lines, *_cost(asked, a, device, piece, work)])


def _device(asked: AdaptConfig) -> Accelerator:
    if asked.device == "none":
        raise UsageError(f"--plan needs to know of which device; pass --device={'|'.join(ACCELERATORS)}")
    if asked.precision == "fp32":
        raise UsageError("--plan is of 16 bit, and --precision=fp32 was given; use bf16 or fp16")
    if asked.mfu > 1:
        raise UsageError(f"--mfu={asked.mfu} is more than the whole peak; pass a share, from 0 to 1")
    return ACCELERATORS[asked.device]


def _work(asked: AdaptConfig, a: NeoXArchitecture) -> TrainingSize:
    try:
        return _of_data(asked, a)
    except UserError:
        if asked.data != AdaptConfig.data:
            raise
    why = "--steps or the recipe" if asked.steps else "at most, says --max_steps"
    length = min(adapt.PAPER_LENGTH, a.positions)
    return TrainingSize(asked.steps or asked.max_steps, length, f"{why}; no dataset of this model in {asked.data}")


def _of_data(asked: AdaptConfig, a: NeoXArchitecture) -> TrainingSize:
    datasets = [Dataset(folder) for folder, _ in mixture.parse_mixture(asked.data)]
    tokenizer = initialization.identify_tokenizer(asked)
    total = sum(len(dataset.rows(tokenizer, "train")) for dataset in datasets)
    steps = min(loader.steps_for_epochs(asked.epochs, total, asked.batch_size), asked.max_steps)
    return TrainingSize(
        asked.steps or steps, adapt.row_length(datasets, a.positions), f"{total:,} rows in {asked.data}"
    )


def plan_microbatch(
    asked: AdaptConfig, a: NeoXArchitecture, device: Accelerator, length: int, times: int = 1
) -> MicrobatchShape:
    """What is computed at a time on so many times the devices.

    Raises:
        UserError: the pieces do not divide the batch, or no mesh fits.
    """
    devices = asked.devices * times
    count = asked.gradient_accumulation_steps or trainer.accumulation_steps(asked.batch_size, length, devices)
    rows = loader.microbatch_rows(asked.batch_size, count)
    shape = mesh.choose_mesh(trainer.requested_mesh(asked), factory.abstract_params(a, a.vocabulary), rows, devices)
    dtype = jnp.float16 if asked.precision == "fp16" else jnp.bfloat16
    kernel = flash_attention.choose_kernel(device.platform, a.head_dim, dtype, device.capability)
    flash = kernel != "xla" and flash_attention.supports(kernel, length, asked.mask_documents)
    return MicrobatchShape(shape, rows, length, asked.remat, count > 1, flash, dtype, asked.mask_documents)


def _model(asked: AdaptConfig, a: NeoXArchitecture, work: TrainingSize) -> Iterator[PlanLine]:
    tokens = work.steps * asked.batch_size * work.length
    operations = flops.per_token(a, work.length)
    yield PlanLine("model", asked.size, f"{a.layers} layers, hidden {a.hidden}, {a.heads} heads")
    yield PlanLine(
        "parameters",
        f"{flops.parameter_count(a):,}",
        f"{flops.parameter_count(a, embeddings=False):,} without embeddings",
    )
    yield PlanLine(
        "tokens", f"{tokens:,}", f"{work.steps:,} steps x {asked.batch_size:,} rows x {work.length:,}; {work.source}"
    )
    yield PlanLine(
        "FLOPs", f"{tokens * operations:.4g}", f"{operations / 1e9:.4g} G a token: matrix products, full attention"
    )
    with_, without = (flops.six_nd(a, float(tokens), embeddings) for embeddings in (True, False))
    yield PlanLine("", f"{with_:.4g}", f"by 6 N D with embeddings; {without:.4g} without")


def _mesh(asked: AdaptConfig, piece: MicrobatchShape) -> Iterator[PlanLine]:
    used = f"{piece.shape.devices} of {asked.devices} {asked.device}"
    yield PlanLine("mesh", " x ".join(map(str, piece.shape)), f"{' x '.join(rules.AXES)}; {used}")
    count = asked.batch_size // piece.rows
    own = piece.rows // piece.shape.row_shards
    rows = f"{piece.rows:,} rows at a time, {own:,} a device; --remat={piece.remat}"
    yield PlanLine("pieces", f"{count:,} an update", f"{rows}; {'flash' if piece.flash else 'XLA'} attention")


def _memory(held: DeviceMemory) -> Iterator[PlanLine]:
    pieces = "the microbatch's and the sum before it" if held.gradients > held.parameters else "one tree"
    yield PlanLine("parameters", _gb(held.parameters), "a device; float32, from the shardings")
    yield PlanLine("gradients", _gb(held.gradients), f"likewise; {pieces}")
    yield PlanLine("moments", _gb(held.moments), "likewise; AdamW's two")
    yield PlanLine("activations", _gb(held.activations), held.source)


def _verdict(
    asked: AdaptConfig, a: NeoXArchitecture, device: Accelerator, piece: MicrobatchShape, held: DeviceMemory
) -> Iterator[PlanLine]:
    there, why = usable_memory(device)
    yield PlanLine("in all", _gb(held.total), f"of {_gb(there)}: {why}")
    if held.total <= there:
        yield PlanLine("FITS", _gb(there - held.total), "to spare on each device")
        return
    yield PlanLine("DOES NOT FIT", _gb(held.total - there), "too much on each device")
    found = suggest_flags(asked, a, device, piece)
    yield from (PlanLine("would fit", flags, f"{_gb(total)}, by the formula") for flags, total in found)
    if not found:
        yield PlanLine("", "nothing near fits", f"not one row a piece, --remat=full, nor {MORE[-1]} times the devices")


def usable_memory(device: Accelerator, environment: Mapping[str, str] = os.environ) -> tuple[float, str]:
    """Bytes that JAX takes of a device, and in words why."""
    stated = f"{device.kind} has {_gb(device.memory)}"
    if device.slices:
        return device.memory, stated
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    name = next((name for name in names if name in environment), names[0])
    share = float(environment.get(name, "0.75"))
    return share * device.memory, f"{stated}, and JAX takes {share:.0%} ({name})"


def suggest_flags(
    asked: AdaptConfig, a: NeoXArchitecture, device: Accelerator, piece: MicrobatchShape
) -> list[tuple[str, float]]:
    """Flags near the given ones with which it fits, and the bytes of a device with them.

    The most rows a piece that fit, and the least to compute again; where both are not enough, the fewest devices.
    """
    there, _ = usable_memory(device)

    def first(tried: Iterable[tuple[str, MicrobatchShape]]) -> list[tuple[str, float]]:
        totals = ((flags, memory.estimate_memory(a, piece, device).total) for flags, piece in tried)
        return list(itertools.islice((found for found in totals if found[1] <= there), 1))

    here = first(_fewer(asked, piece)) + first(_again(piece))
    full = piece._replace(remat="full")
    both = ((f"--remat=full {flags}", fewer) for flags, fewer in _fewer(asked, full))
    return here or first(both) or first(_more(asked, a, device, piece))


def _again(piece: MicrobatchShape) -> Iterator[tuple[str, MicrobatchShape]]:
    """Computing more again."""
    kinds = list(REMAT)
    return ((f"--remat={kind}", piece._replace(remat=kind)) for kind in kinds[kinds.index(piece.remat) + 1 :])


def _fewer(asked: AdaptConfig, piece: MicrobatchShape) -> Iterator[tuple[str, MicrobatchShape]]:
    """With fewer rows at a time."""
    for count in range(asked.batch_size // piece.rows + 1, asked.batch_size // piece.shape.row_shards + 1):
        if asked.batch_size % (count * piece.shape.row_shards) == 0:
            yield f"--gradient_accumulation_steps={count}", piece._replace(rows=asked.batch_size // count, several=True)


def _more(
    asked: AdaptConfig, a: NeoXArchitecture, device: Accelerator, piece: MicrobatchShape
) -> Iterator[tuple[str, MicrobatchShape]]:
    """On more devices, where a mesh fits them; at each number first as asked, then computing more again."""
    for times in MORE:
        with contextlib.suppress(UserError):
            found = plan_microbatch(asked, a, device, piece.length, times)
            for flags, tried in [("", found), *_again(found)]:
                yield f"--devices={asked.devices * times} {flags}".strip(), tried


def _cost(
    asked: AdaptConfig, a: NeoXArchitecture, device: Accelerator, piece: MicrobatchShape, work: TrainingSize
) -> Iterator[PlanLine]:
    mfu, why = _mfu(asked, a, device)
    speed = piece.shape.devices * device.peak * mfu / flops.per_token(a, work.length)
    hours = work.steps * asked.batch_size * work.length / speed / 3600
    yield PlanLine("speed", f"{speed:,.0f} tokens/s", f"{mfu:.0%} of {device.peak / 1e12:.0f} TFLOP/s a device, {why}")
    yield PlanLine("time", f"{hours / 24:,.2f} days", "training alone: no validation, saving or waiting")
    price = asked.price or device.price
    source = "--price" if asked.price else "assumed, providers differ by 2 to 3 times: --price"
    spent = hours * asked.devices
    yield PlanLine("cost", f"${spent * price:,.0f}", f"{spent:,.0f} device hours at ${price:.2f} ({source})")


def _mfu(asked: AdaptConfig, a: NeoXArchitecture, device: Accelerator) -> tuple[float, str]:
    row = memory.find_measured(a, device)
    if asked.mfu:
        return asked.mfu, "--mfu"
    return (row["mfu"], f"measured on {row['device']}") if row else (MFU, "assumed: --mfu")


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


def _aligned(lines: list[PlanLine]) -> str:
    first, second = (max(len(line[i]) for line in lines) for i in (0, 1))
    return "\n".join(f"{line.name:{first}}  {line.value:>{second}}  {line.source}".rstrip() for line in lines)
