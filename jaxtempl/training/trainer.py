"""From a resolved config to fit(): the run's folder, where to start or resume, and how far to go."""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grain
import jax
import optax
from jax.sharding import Mesh

from jaxtempl.config import parsing
from jaxtempl.config.training import TrainConfig
from jaxtempl.data import loader
from jaxtempl.data.loader import Batch
from jaxtempl.errors import UserError, first_line
from jaxtempl.models import factory
from jaxtempl.parallel import process_group
from jaxtempl.parallel.mesh import MeshShape, choose_mesh, make_mesh
from jaxtempl.runs import provenance, run
from jaxtempl.runs.run import Phase, Run
from jaxtempl.specs import flops
from jaxtempl.specs.architecture import Architecture
from jaxtempl.text.cases import Template
from jaxtempl.training import initialization, loggers, loop, precision, resume
from jaxtempl.training.initialization import Initialization
from jaxtempl.training.objectives import Objective
from jaxtempl.training.optimizer import adamw, learning_rates
from jaxtempl.training.preemption import NEVER_PREEMPTED, PreemptionHandler
from jaxtempl.training.state import TrainState, abstract_state, initial_state, restore_state
from jaxtempl.training.tracker import Tracker

MICROBATCH_TOKENS = 8192  # of one device, by default; an update of 2 M tokens at once fits none
TrainConfigT = TypeVar("TrainConfigT", bound=TrainConfig)


class TrainingJob(NamedTuple):
    """What one phase brings to the training that both share.

    Attributes:
        phase: adapt or finetune.
        task: its loss and metrics.
        batches: the batch of each step.
        validation: the held-out batches, made anew at each call; None where nothing is held out.
        mesh: devices along each of its axes.
        dtype: of the computation.
        templates: the classes; none for adapt.
        facts: what the manifest says beyond what every run's says.
    """

    phase: Phase
    task: Objective
    batches: grain.MapDataset
    validation: Callable[[], Iterable[Batch]] | None
    mesh: MeshShape
    dtype: jax.numpy.dtype
    templates: Sequence[Template]
    facts: dict[str, Any]


def resolve_config(asked: TrainConfigT, phase: Phase, steps: int, saves: int, length: int) -> TrainConfigT:
    """The config with every number that depends on the data filled in.

    Args:
        asked: what flags and files say.
        phase: names the default folder.
        steps: updates that the epochs come to.
        saves: study checkpoints, unless `save_every` says how often.
        length: tokens of a row.
    """
    steps = asked.steps or steps
    return dataclasses.replace(
        asked,
        steps=steps,
        save_every=asked.save_every or max(steps // saves, 1),
        gradient_accumulation_steps=asked.gradient_accumulation_steps
        or accumulation_steps(asked.batch_size, length, jax.device_count()),
        out=asked.out or f"runs/{phase}-{asked.size}",
    )


def accumulation_steps(batch: int, length: int, devices: int) -> int:
    """The fewest equal pieces of a batch that are of at most PIECE tokens a device; a row is never cut."""
    most = MICROBATCH_TOKENS * devices
    return next(n for n in range(1, batch + 1) if batch % n == 0 and (batch // n * length <= most or n == batch))


def requested_mesh(settings: TrainConfig) -> MeshShape:
    """As the flags have it; 0 where they leave the choice."""
    return MeshShape(settings.mesh_data, settings.mesh_fsdp, settings.mesh_tensor)


def resolve_mesh(settings: TrainConfig, architecture: Architecture, slots: int | None, rows: int) -> MeshShape:
    """The mesh that the flags ask for, or the best that fits the model and the rows of a microbatch.

    Raises:
        UserError: none such fits.
    """
    chosen = choose_mesh(
        requested_mesh(settings), factory.abstract_params(architecture, slots), rows, jax.device_count()
    )
    if jax.device_count() > 1:
        print(f"# mesh {chosen}, {chosen.devices} of {jax.device_count()} devices", flush=True)
    if jax.process_count() > 1 and chosen.devices < jax.device_count():
        raise UserError(
            f"mesh {chosen} has {chosen.devices} devices, and the {jax.process_count()} processes have "
            f"{jax.device_count()}, all of which must take part; start fewer processes, or change --batch_size, "
            "--gradient_accumulation_steps or --mesh so that all are used"
        )
    return chosen


def print_config(settings: TrainConfig, fact: str) -> None:
    """Prints the resolved config and what the data came to."""
    print(f"{parsing.dump(settings)}# {fact}", flush=True)


def check_agreement(settings: TrainConfig, begin: Initialization, datasets: Mapping[str, str]) -> None:
    """Raises UserError where processes of one training have other data, another start, or other versions."""
    alike = {"batch_size": settings.batch_size, "steps": settings.steps, "out": settings.out}
    process_group.check_agreement(
        "data", alike | resume.input_digests(begin.origin, datasets) | resume.versions(provenance.provenance())
    )


def train_run(
    settings: TrainConfig, begin: Initialization, work: TrainingJob, stop: PreemptionHandler = NEVER_PREEMPTED
) -> Run:
    """Trains to `settings.steps`, from the run's newest recovery checkpoint if it has one, and says so.

    Args:
        settings: resolved.
        begin: where a new run starts.
        work: what there is to do.
        stop: what hears SIGTERM.

    Raises:
        Interrupted: SIGTERM came, and all is saved.
        UserError: the folder holds another run, another process trains it, or what `fit` raises.
    """
    folder = Path(settings.out)
    with run.lock(folder) if process_group.is_main() else contextlib.nullcontext():
        if process_group.is_main():
            _open(settings, begin, work)
        process_group.barrier("the run's folder")
        opened = Run(folder)  # on every host: they share the folder
        opened.checkpoints.keep = settings.keep
        if settings.steps not in opened.checkpoints.shared_steps():
            _train(settings, begin, work, opened, stop)
    print(f"{opened.folder} is complete at step {settings.steps}")
    return opened


def _train(
    settings: TrainConfig, begin: Initialization, work: TrainingJob, opened: Run, stop: PreemptionHandler
) -> None:
    mesh, optimizer = make_mesh(work.mesh), adamw(settings, settings.steps)
    if process_group.is_main():
        opened.checkpoints.remove_partial()
    newest = opened.checkpoints.newest_resumable()
    if newest is None and settings.resume == "must" and opened.checkpoints.shared_steps():
        raise UserError(f"--resume=must, but {opened.folder} has no checkpoint to go on from; use --resume=auto")
    state = _state(settings, begin, work, opened, newest, mesh, optimizer)
    rate = learning_rates(settings, settings.steps).item
    # An adapt run keeps the model as it was, which every study compares with.
    plan = loop.Schedule(
        settings.steps, settings.save_every, settings.recover_minutes * 60, first=work.phase == "adapt"
    )
    peak = flops.peak([device.device_kind for device in mesh.devices.flat])
    told = loggers.open_loggers(settings, opened.folder, newest or 0) if process_group.is_main() else []
    stream = lambda first: loader.batches_from(work.batches, first, settings.steps)  # noqa: E731
    stop.defer()
    with Tracker(told, rate, peak) as tracker, _memory_told():
        saves, asked = opened.checkpoints, lambda: stop.requested
        loop.fit(work.task, optimizer, state, stream, work.validation, plan, saves, tracker, asked)


@contextlib.contextmanager
def _memory_told() -> Generator[None]:
    """A device that is full as one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"a device has too little memory ({first_line(error)}); compute fewer rows at a time "
            "(--gradient_accumulation_steps), recompute activations (--remat=full), or use more devices: bin/adapt "
            "--plan shows what fits"
        ) from error


def _state(
    settings: TrainConfig,
    begin: Initialization,
    work: TrainingJob,
    opened: Run,
    newest: int | None,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """What a checkpoint holds, or without one the start's; never both at once."""
    scale = precision.initial_loss_scale(work.dtype)
    if newest is None:
        params = initialization.initial_params(begin, opened.slots, settings.seed, mesh)
        return initial_state(params, optimizer, mesh, scale)
    print(f"going on from {opened.folder}@{newest}", flush=True)
    shapes = factory.abstract_params(opened.architecture, opened.slots)
    return restore_state(abstract_state(mesh, optimizer, shapes, scale), opened.checkpoints, newest)


def _open(settings: TrainConfig, begin: Initialization, work: TrainingJob) -> None:
    """Makes the run's folder, or sees that it may be gone on with, as `--resume` says."""
    folder = Path(settings.out)
    exists = (folder / "manifest.json").exists()
    if settings.resume == "must" and not exists:
        raise UserError(f"--resume=must, but {folder} is no run; check --out or use --resume=auto")
    if settings.resume == "never" and exists:
        raise UserError(f"--resume=never, but {folder} is a run already; name another --out or remove it")
    if exists:
        resume.check_changes(Run(folder), settings, begin, work.facts["datasets"])
    else:
        _refuse_other_folder(folder)
        _create(folder, settings, begin, work)


def _refuse_other_folder(folder: Path) -> None:
    """A run is made in a new folder, an empty one, or one where a start was cut off."""
    found = {path.name for path in folder.iterdir() if path.name != ".lock" and path.suffix != ".partial"}
    torn = run.CREATED[0] in found and found <= set(run.CREATED)
    if found and not torn:
        raise UserError(f"{folder} holds other files ({', '.join(sorted(found)[:3])}); name another --out")


def _create(folder: Path, settings: TrainConfig, begin: Initialization, work: TrainingJob) -> None:
    facts = {
        "mesh": work.mesh._asdict(),
        "phase": work.phase,
        "size": settings.size,
        "seed": settings.seed,
        "start": begin.origin,
        **work.facts,
    }
    run.create(folder, parsing.dump(settings), begin.architecture, begin.tokenizer.json, work.templates, facts)
