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

from jaxtempl import adapt, architecture, batches, config, flops, launch, memory, partition
from jaxtempl.architecture import NeoXArchitecture
from jaxtempl.config import AdaptConfig
from jaxtempl.dataset import Dataset
from jaxtempl.devices import DEVICES, Device
from jaxtempl.errors import UsageError, UserError
from jaxtempl.memory import Held, Piece
from jaxtempl.models import build, kernels
from jaxtempl.models.stack import REMAT
from jaxtempl.tokenizer import Tokenizer

MFU = 0.4  # assumed where none is measured and none is given
MORE = (2, 4, 8, 16, 32, 64)  # times the devices that are tried where a training does not fit on those there are


class Work(NamedTuple):
    """How much there is to train on.

    Attributes:
        steps: updates.
        length: tokens of a row.
        source: where these come from.
    """

    steps: int
    length: int
    source: str


class Line(NamedTuple):
    """A line of the plan: what, how much, and where that comes from."""

    name: str
    value: str
    source: str = ""


def show(asked: AdaptConfig) -> None:
    """Prints the plan.

    Raises:
        UserError: no device is named, or the flags fit no mesh.
    """
    jax.config.update("jax_platforms", "cpu")  # an accelerator of this machine stays free
    print(page(asked))


def page(asked: AdaptConfig) -> str:
    """The plan as text."""
    device = _device(asked)
    a = architecture.of(config.size(asked.size)["architecture"])
    if not isinstance(a, NeoXArchitecture):
        raise UsageError(f"--plan knows what GPT-NeoX takes, and {asked.size} is of another family; name a Pythia size")
    work = _work(asked, a)
    piece = piece_of(asked, a, device, work.length)
    held = (memory.on_tpu if device.slices else memory.on_device)(a, piece, device)
    lines = [*_model(asked, a, work), *_mesh(asked, piece), *_memory(held), *_verdict(asked, a, device, piece, held)]
    return _aligned([*lines, *_cost(asked, a, device, piece, work)])


def _device(asked: AdaptConfig) -> Device:
    if asked.device == "none":
        raise UsageError(f"--plan needs to know of which device; pass --device={'|'.join(DEVICES)}")
    if asked.precision == "fp32":
        raise UsageError("--plan is of 16 bit, and --precision=fp32 was given; use bf16 or fp16")
    if asked.mfu > 1:
        raise UsageError(f"--mfu={asked.mfu} is more than the whole peak; pass a share, from 0 to 1")
    return DEVICES[asked.device]


def _work(asked: AdaptConfig, a: NeoXArchitecture) -> Work:
    try:
        return _of_data(asked, a)
    except UserError:
        if asked.data != AdaptConfig.data:
            raise
    why = "--steps or the recipe" if asked.steps else "at most, says --max_steps"
    length = min(adapt.PAPER_LENGTH, a.positions)
    return Work(asked.steps or asked.max_steps, length, f"{why}; no dataset of this model in {asked.data}")


def _of_data(asked: AdaptConfig, a: NeoXArchitecture) -> Work:
    datasets = [Dataset(folder) for folder, _ in config.mixture(asked.data)]
    tokenizer = Tokenizer(config.tokenizer_path(asked.size))
    total = sum(len(dataset.rows(tokenizer, "train")) for dataset in datasets)
    steps = min(batches.steps_in(asked.epochs, total, asked.batch), asked.max_steps)
    return Work(asked.steps or steps, adapt.row_length(datasets, a.positions), f"{total:,} rows in {asked.data}")


def piece_of(asked: AdaptConfig, a: NeoXArchitecture, device: Device, length: int, times: int = 1) -> Piece:
    """What is computed at a time on so many times the devices.

    Raises:
        UserError: the pieces do not divide the batch, or no mesh fits.
    """
    devices = asked.devices * times
    count = asked.accumulate or launch.pieces(asked.batch, length, devices)
    rows = batches.rows_a_piece(asked.batch, count)
    shape = partition.choose(launch.asked_mesh(asked), build.abstract_params(a, a.vocabulary), rows, devices)
    dtype = jnp.float16 if asked.precision == "fp16" else jnp.bfloat16
    kernel = kernels.choose(device.platform, a.head_dim, dtype, device.capability)
    flash = kernel != "xla" and kernels.serves(kernel, length, asked.mask_documents)
    return Piece(shape, rows, length, asked.remat, count > 1, flash, dtype, asked.mask_documents)


def _model(asked: AdaptConfig, a: NeoXArchitecture, work: Work) -> Iterator[Line]:
    tokens = work.steps * asked.batch * work.length
    operations = flops.trained_token(a, work.length)
    yield Line("model", asked.size, f"{a.layers} layers, hidden {a.hidden}, {a.heads} heads")
    yield Line(
        "parameters", f"{flops.parameters(a):,}", f"{flops.parameters(a, embeddings=False):,} without embeddings"
    )
    yield Line("tokens", f"{tokens:,}", f"{work.steps:,} steps x {asked.batch:,} rows x {work.length:,}; {work.source}")
    yield Line(
        "FLOPs", f"{tokens * operations:.4g}", f"{operations / 1e9:.4g} G a token: matrix products, full attention"
    )
    with_, without = (flops.six_nd(a, float(tokens), embeddings) for embeddings in (True, False))
    yield Line("", f"{with_:.4g}", f"by 6 N D with embeddings; {without:.4g} without")


def _mesh(asked: AdaptConfig, piece: Piece) -> Iterator[Line]:
    used = f"{piece.shape.devices} of {asked.devices} {asked.device}"
    yield Line("mesh", " x ".join(map(str, piece.shape)), f"{' x '.join(partition.AXES)}; {used}")
    count = asked.batch // piece.rows
    own = piece.rows // piece.shape.rows
    rows = f"{piece.rows:,} rows at a time, {own:,} a device; --remat={piece.remat}"
    yield Line("pieces", f"{count:,} an update", f"{rows}; {'flash' if piece.flash else 'XLA'} attention")


def _memory(held: Held) -> Iterator[Line]:
    pieces = "the microbatch's and the sum before it" if held.gradients > held.parameters else "one tree"
    yield Line("parameters", _gb(held.parameters), "a device; float32, from the shardings")
    yield Line("gradients", _gb(held.gradients), f"likewise; {pieces}")
    yield Line("moments", _gb(held.moments), "likewise; AdamW's two")
    yield Line("activations", _gb(held.activations), held.source)


def _verdict(asked: AdaptConfig, a: NeoXArchitecture, device: Device, piece: Piece, held: Held) -> Iterator[Line]:
    there, why = usable(device)
    yield Line("in all", _gb(held.total), f"of {_gb(there)}: {why}")
    if held.total <= there:
        yield Line("FITS", _gb(there - held.total), "to spare on each device")
        return
    yield Line("DOES NOT FIT", _gb(held.total - there), "too much on each device")
    found = nearest(asked, a, device, piece)
    yield from (Line("would fit", flags, f"{_gb(total)}, by the formula") for flags, total in found)
    if not found:
        yield Line("", "nothing near fits", f"not one row a piece, --remat=full, nor {MORE[-1]} times the devices")


def usable(device: Device, environment: Mapping[str, str] = os.environ) -> tuple[float, str]:
    """Bytes that JAX takes of a device, and in words why."""
    stated = f"{device.kind} has {_gb(device.memory)}"
    if device.slices:
        return device.memory, stated
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    name = next((name for name in names if name in environment), names[0])
    share = float(environment.get(name, "0.75"))
    return share * device.memory, f"{stated}, and JAX takes {share:.0%} ({name})"


def nearest(asked: AdaptConfig, a: NeoXArchitecture, device: Device, piece: Piece) -> list[tuple[str, float]]:
    """Flags near the given ones with which it fits, and the bytes of a device with them.

    The most rows a piece that fit, and the least to compute again; where both are not enough, the fewest devices.
    """
    there, _ = usable(device)

    def first(tried: Iterable[tuple[str, Piece]]) -> list[tuple[str, float]]:
        totals = ((flags, memory.on_device(a, piece, device).total) for flags, piece in tried)
        return list(itertools.islice((found for found in totals if found[1] <= there), 1))

    here = first(_fewer(asked, piece)) + first(_again(piece))
    full = piece._replace(remat="full")
    both = ((f"--remat=full {flags}", fewer) for flags, fewer in _fewer(asked, full))
    return here or first(both) or first(_more(asked, a, device, piece))


def _again(piece: Piece) -> Iterator[tuple[str, Piece]]:
    """Computing more again."""
    kinds = list(REMAT)
    return ((f"--remat={kind}", piece._replace(remat=kind)) for kind in kinds[kinds.index(piece.remat) + 1 :])


def _fewer(asked: AdaptConfig, piece: Piece) -> Iterator[tuple[str, Piece]]:
    """With fewer rows at a time."""
    for count in range(asked.batch // piece.rows + 1, asked.batch // piece.shape.rows + 1):
        if asked.batch % (count * piece.shape.rows) == 0:
            yield f"--accumulate={count}", piece._replace(rows=asked.batch // count, several=True)


def _more(asked: AdaptConfig, a: NeoXArchitecture, device: Device, piece: Piece) -> Iterator[tuple[str, Piece]]:
    """On more devices, where a mesh fits them; at each number first as asked, then computing more again."""
    for times in MORE:
        with contextlib.suppress(UserError):
            found = piece_of(asked, a, device, piece.length, times)
            for flags, tried in [("", found), *_again(found)]:
                yield f"--devices={asked.devices * times} {flags}".strip(), tried


def _cost(asked: AdaptConfig, a: NeoXArchitecture, device: Device, piece: Piece, work: Work) -> Iterator[Line]:
    mfu, why = _mfu(asked, a, device)
    speed = piece.shape.devices * device.peak * mfu / flops.trained_token(a, work.length)
    hours = work.steps * asked.batch * work.length / speed / 3600
    yield Line("speed", f"{speed:,.0f} tokens/s", f"{mfu:.0%} of {device.peak / 1e12:.0f} TFLOP/s a device, {why}")
    yield Line("time", f"{hours / 24:,.2f} days", "training alone: no validation, saving or waiting")
    price = asked.price or device.price
    source = "--price" if asked.price else "assumed, providers differ by 2 to 3 times: --price"
    spent = hours * asked.devices
    yield Line("cost", f"${spent * price:,.0f}", f"{spent:,.0f} device hours at ${price:.2f} ({source})")


def _mfu(asked: AdaptConfig, a: NeoXArchitecture, device: Device) -> tuple[float, str]:
    row = memory.measured(a, device)
    if asked.mfu:
        return asked.mfu, "--mfu"
    return (row["mfu"], f"measured on {row['device']}") if row else (MFU, "assumed: --mfu")


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


def _aligned(lines: list[Line]) -> str:
    first, second = (max(len(line[i]) for line in lines) for i in (0, 1))
    return "\n".join(f"{line.name:{first}}  {line.value:>{second}}  {line.source}".rstrip() for line in lines)
