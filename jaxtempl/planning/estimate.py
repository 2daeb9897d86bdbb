"""`--plan`: mesh, memory, time and cost of a training on devices that need not exist here.

Nothing runs, and nothing is written.
"""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtempl.config.training import AdaptConfig, FinetuneConfig
from jaxtempl.data import loader
from jaxtempl.errors import UsageError, UserError
from jaxtempl.models import factory, flash_attention
from jaxtempl.models.scan import REMAT
from jaxtempl.parallel import mesh, rules
from jaxtempl.planning import memory
from jaxtempl.planning.memory import DeviceMemory, MicrobatchShape
from jaxtempl.planning.training_size import TrainingSize, row_operations, training_size
from jaxtempl.specs import flops
from jaxtempl.specs.accelerators import ACCELERATORS, Accelerator
from jaxtempl.specs.architecture import Architecture
from jaxtempl.training import finetune, initialization, trainer
from jaxtempl.training.initialization import PhaseConfig

DEFAULT_MFU = 0.4  # assumed where none is measured and none is given
MULTIPLES = (2, 4, 8, 16, 32, 64)  # of the number of devices, tried if a training does not fit


class PlanLine(NamedTuple):
    """A line of the plan: name, value, and the source of the value."""

    name: str
    value: str
    source: str = ""


def print_plan(config: PhaseConfig) -> None:
    """Print the plan.

    Raises:
        UserError: No device is named, or the flags fit no mesh.
    """
    jax.config.update("jax_platforms", "cpu")  # leaves this machine's accelerator free
    print(format_plan(config))


def format_plan(config: PhaseConfig) -> str:
    """Return the plan as text."""
    device = _device(config)
    a = initialization.identify_model(config.size, config.weights, config.start, config.revision).architecture
    a = finetune.set_attention_and_pooling(a, config) if isinstance(config, FinetuneConfig) else a
    size = training_size(config, a)
    microbatch = plan_microbatch(config, a, device, size.length, slots=size.slots)
    needed = (memory.compiler_memory if device.slices else memory.estimate_memory)(a, microbatch, device)
    lines = [*_model_lines(config, a, size), *_mesh_lines(config, microbatch), *_memory_lines(needed)]
    lines += _fit_lines(config, a, device, microbatch, needed)
    return _align([*lines, *_cost_lines(config, a, device, microbatch, size)])


def _device(config: PhaseConfig) -> Accelerator:
    """Return the device to plan for. Raises UsageError for flags that no plan has."""
    if config.device == "none":
        raise UsageError(f"--plan needs a device; pass --device={'|'.join(ACCELERATORS)}")
    if config.precision == "fp32":
        raise UsageError("--plan supports 16 bit only, and --precision=fp32 was given; use bf16 or fp16")
    if config.mfu > 1:
        raise UsageError(f"--mfu={config.mfu} is more than the whole peak; pass a fraction from 0 to 1")
    return ACCELERATORS[config.device]


def plan_microbatch(
    config: PhaseConfig,
    a: Architecture,
    device: Accelerator,
    length: int,
    multiple: int = 1,
    slots: int | None = None,
) -> MicrobatchShape:
    """Return the microbatch on `multiple` times the configured number of devices; a classifier's is its longest.

    Raises:
        UserError: The microbatches do not divide the batch, or no mesh fits.
    """
    devices = config.devices * multiple
    count = config.gradient_accumulation_steps or trainer.accumulation_steps(config.batch_size, length, devices)
    # A classifier's microbatches have a number of tokens, and their rows are filled up to the mesh.
    rows = loader.microbatch_rows(config.batch_size, count) if slots is None else max(config.batch_size // count, 1)
    requested, shapes = trainer.requested_mesh(config), factory.abstract_params(a, slots)
    shape = mesh.choose_mesh(requested, shapes, rows if slots is None else 0, devices)
    rows += -rows % shape.row_shards
    dtype = jnp.float16 if config.precision == "fp16" else jnp.bfloat16
    documents = isinstance(config, AdaptConfig) and config.mask_documents
    kernel = flash_attention.choose_kernel(device.platform, a.head_dim, dtype, device.capability)
    flash = memory.is_causal(a) and kernel != "xla" and flash_attention.supports(kernel, length, documents)
    return MicrobatchShape(shape, rows, length, config.remat, count > 1, flash, dtype, documents, slots)


def _model_lines(config: PhaseConfig, a: Architecture, size: TrainingSize) -> Iterator[PlanLine]:
    tokens = size.steps * config.batch_size * size.length
    operations = row_operations(a, size) / size.length
    yield PlanLine("model", config.size, f"{a.layers} layers, hidden {a.hidden}, {a.heads} heads")
    without_embeddings = f"{flops.parameter_count(a, embeddings=False):,} without embeddings"
    yield PlanLine("parameters", f"{flops.parameter_count(a):,}", without_embeddings)
    rows = f"{size.steps:,} steps x {config.batch_size:,} rows x {size.length:,}"
    yield PlanLine("tokens", f"{tokens:,}", f"{rows}; {size.source}")
    per_token = f"{operations / 1e9:.4g} G a token: matrix products, full attention"
    yield PlanLine("FLOPs", f"{tokens * operations:.4g}", per_token)
    with_, without = (flops.six_nd(a, float(tokens), embeddings) for embeddings in (True, False))
    yield PlanLine("", f"{with_:.4g}", f"by 6 N D with embeddings; {without:.4g} without")


def _mesh_lines(config: PhaseConfig, microbatch: MicrobatchShape) -> Iterator[PlanLine]:
    used = f"{microbatch.mesh.devices} of {config.devices} {config.device}"
    yield PlanLine("mesh", " x ".join(map(str, microbatch.mesh)), f"{' x '.join(rules.AXES)}; {used}")
    count = config.batch_size // microbatch.rows
    rows = f"{microbatch.rows:,} rows each, {microbatch.local_rows:,} a device; --remat={microbatch.remat}"
    kernel = "flash" if microbatch.flash else "XLA"
    yield PlanLine("microbatches", f"{count:,} an update", f"{rows}; {kernel} attention")


def _memory_lines(needed: DeviceMemory) -> Iterator[PlanLine]:
    trees = "the microbatch's and the sum of earlier ones" if needed.gradients > needed.parameters else "one tree"
    yield PlanLine("parameters", _gb(needed.parameters), "a device; float32, by the shardings")
    yield PlanLine("gradients", _gb(needed.gradients), f"a device; {trees}")
    yield PlanLine("moments", _gb(needed.moments), "a device; AdamW's two")
    yield PlanLine("activations", _gb(needed.activations), needed.source)


def _fit_lines(
    config: PhaseConfig, a: Architecture, device: Accelerator, microbatch: MicrobatchShape, needed: DeviceMemory
) -> Iterator[PlanLine]:
    usable, reason = usable_memory(device)
    yield PlanLine("total", _gb(needed.total), f"of {_gb(usable)}: {reason}")
    if needed.total <= usable:
        yield PlanLine("FITS", _gb(usable - needed.total), "to spare on each device")
        return
    yield PlanLine("DOES NOT FIT", _gb(needed.total - usable), "too much on each device")
    suggestions = suggest_flags(config, a, device, microbatch)
    yield from (PlanLine("would fit", flags, f"{_gb(total)}, by the formula") for flags, total in suggestions)
    if not suggestions:
        tried = f"one row a microbatch, --remat=full, {MULTIPLES[-1]} times the devices"
        yield PlanLine("", "nothing near fits", f"tried: {tried}")


def usable_memory(device: Accelerator, environment: Mapping[str, str] = os.environ) -> tuple[float, str]:
    """Return the bytes that JAX allocates on a device, and the reason in words."""
    stated = f"{device.kind} has {_gb(device.memory)}"
    if device.slices:
        return device.memory, stated
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    name = next((name for name in names if name in environment), names[0])
    share = float(environment.get(name, "0.75"))
    return share * device.memory, f"{stated}, and JAX takes {share:.0%} ({name})"


def suggest_flags(
    config: PhaseConfig, a: Architecture, device: Accelerator, microbatch: MicrobatchShape
) -> list[tuple[str, float]]:
    """Return flags close to the given ones with which the training fits, and the bytes of a device with them.

    The suggestions are the largest microbatch that fits and the least rematerialisation that does; if neither alone is
    enough, both; and else the fewest devices.
    """
    usable, _ = usable_memory(device)

    def first_fit(candidates: Iterable[tuple[str, MicrobatchShape]]) -> list[tuple[str, float]]:
        totals = ((flags, memory.estimate_memory(a, shape, device).total) for flags, shape in candidates)
        return list(itertools.islice((each for each in totals if each[1] <= usable), 1))

    single = first_fit(_smaller_microbatches(config, microbatch)) + first_fit(_more_remat(microbatch))
    full = microbatch._replace(remat="full")
    both = ((f"--remat=full {flags}", shape) for flags, shape in _smaller_microbatches(config, full))
    return single or first_fit(both) or first_fit(_more_devices(config, a, device, microbatch))


def _more_remat(microbatch: MicrobatchShape) -> Iterator[tuple[str, MicrobatchShape]]:
    kinds = list(REMAT)
    for kind in kinds[kinds.index(microbatch.remat) + 1 :]:
        yield f"--remat={kind}", microbatch._replace(remat=kind)


def _smaller_microbatches(config: PhaseConfig, microbatch: MicrobatchShape) -> Iterator[tuple[str, MicrobatchShape]]:
    row_shards = microbatch.mesh.row_shards
    for count in range(config.batch_size // microbatch.rows + 1, config.batch_size // row_shards + 1):
        if config.batch_size % (count * row_shards) == 0:
            smaller = microbatch._replace(rows=config.batch_size // count, accumulates=True)
            yield f"--gradient_accumulation_steps={count}", smaller


def _more_devices(
    config: PhaseConfig, a: Architecture, device: Accelerator, microbatch: MicrobatchShape
) -> Iterator[tuple[str, MicrobatchShape]]:
    """Yield more devices where a mesh fits them: at each number first as configured, then with more remat."""
    for multiple in MULTIPLES:
        with contextlib.suppress(UserError):
            shape = plan_microbatch(config, a, device, microbatch.length, multiple, microbatch.slots)
            for flags, candidate in [("", shape), *_more_remat(shape)]:
                yield f"--devices={config.devices * multiple} {flags}".strip(), candidate


def _cost_lines(
    config: PhaseConfig, a: Architecture, device: Accelerator, microbatch: MicrobatchShape, size: TrainingSize
) -> Iterator[PlanLine]:
    mfu, source = _mfu(config, a, device)
    speed = microbatch.mesh.devices * device.peak * mfu * size.length / row_operations(a, size)
    hours = size.steps * config.batch_size * size.length / speed / 3600
    peak = f"{mfu:.0%} of {device.peak / 1e12:.0f} TFLOP/s a device, {source}"
    yield PlanLine("speed", f"{speed:,.0f} tokens/s", peak)
    yield PlanLine("time", f"{hours / 24:,.2f} days", "training alone: no validation, saving or waiting")
    price = config.price or device.price
    source = "--price" if config.price else "assumed, providers differ by 2 to 3 times: --price"
    device_hours = hours * config.devices
    cost = f"{device_hours:,.0f} device hours at ${price:.2f} ({source})"
    yield PlanLine("cost", f"${device_hours * price:,.0f}", cost)


def _mfu(config: PhaseConfig, a: Architecture, device: Accelerator) -> tuple[float, str]:
    """Return the model FLOPs utilisation to assume, and its source in words."""
    if config.mfu:
        return config.mfu, "--mfu"
    row = memory.find_measured(a, device) if isinstance(config, AdaptConfig) else None
    return (row["mfu"], f"measured on {row['device']}") if row else (DEFAULT_MFU, "assumed: --mfu")


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


def _align(lines: list[PlanLine]) -> str:
    names, values = (max(len(line[i]) for line in lines) for i in (0, 1))
    return "\n".join(f"{line.name:{names}}  {line.value:>{values}}  {line.source}".rstrip() for line in lines)
