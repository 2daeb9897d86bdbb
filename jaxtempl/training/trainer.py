"""From a resolved config to fit(): the run's folder, its initial or resumed state, and the end of training."""

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
from jaxtempl.errors import UsageError, UserError, first_line
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

MICROBATCH_TOKENS = 8192  # default per device; no device has the memory for an update of 2 M tokens at once
TrainConfigT = TypeVar("TrainConfigT", bound=TrainConfig)


class TrainingJob(NamedTuple):
    """The part of a training that differs between adapt and finetune.

    Attributes:
        phase: Name of the phase.
        objective: Loss and metrics.
        batches: Batch of each step.
        validation: Returns the held-out batches; None without held-out data.
        mesh: Shape of the mesh.
        dtype: Type of the computation.
        templates: Classes of the template head; empty for adapt.
        facts: Entries of the run's manifest in addition to those of every run.
    """

    phase: Phase
    objective: Objective
    batches: grain.MapDataset
    validation: Callable[[], Iterable[Batch]] | None
    mesh: MeshShape
    dtype: jax.numpy.dtype
    templates: Sequence[Template]
    facts: dict[str, Any]


def resolve_config(config: TrainConfigT, phase: Phase, steps: int, saves: int, length: int) -> TrainConfigT:
    """Return the config with every default that depends on the data filled in.

    Args:
        config: Config from flags and files.
        phase: Phase, which the default folder is named after.
        steps: Updates that the epochs amount to.
        saves: Number of study checkpoints, unless `save_every` is given.
        length: Tokens of a row.

    Raises:
        UsageError: `decay_at` does not fit the schedule.
    """
    steps = config.steps or steps
    if config.decay_at and (config.schedule != "wsd" or config.decay_at >= steps):
        raise UsageError(
            f"--decay_at={config.decay_at} with --schedule={config.schedule} and {steps} updates; it needs "
            "--schedule=wsd and an update before the last"
        )
    return dataclasses.replace(
        config,
        steps=steps,
        save_every=config.save_every or max(steps // saves, 1),
        gradient_accumulation_steps=config.gradient_accumulation_steps
        or accumulation_steps(config.batch_size, length, jax.device_count()),
        out=config.out or f"runs/{phase}-{config.size}",
    )


def accumulation_steps(batch: int, length: int, devices: int) -> int:
    """Return the fewest equal microbatches of at most MICROBATCH_TOKENS tokens a device; a row is never split."""
    limit = MICROBATCH_TOKENS * devices
    return next(n for n in range(1, batch + 1) if batch % n == 0 and (batch // n * length <= limit or n == batch))


def check_flags(config: TrainConfig) -> None:
    """Raise UsageError if a training has flags of `--plan`."""
    if (config.device, config.devices, config.mfu, config.price) != ("none", 1, 0.0, 0.0):
        raise UsageError(
            "--device, --devices, --mfu and --price need --plan; a training uses the devices that it finds, or "
            "--mesh.fsdp=N of them"
        )


def requested_mesh(config: TrainConfig) -> MeshShape:
    """Return the mesh of the flags; an axis of 0 leaves the choice."""
    return MeshShape(config.mesh_data, config.mesh_fsdp, config.mesh_tensor)


def resolve_mesh(config: TrainConfig, architecture: Architecture, slots: int | None, rows: int) -> MeshShape:
    """Return the mesh of the flags, or the best that fits the model and the rows of a microbatch.

    Raises:
        UserError: No such mesh fits, or it leaves devices of other processes unused.
    """
    chosen = choose_mesh(requested_mesh(config), factory.abstract_params(architecture, slots), rows, jax.device_count())
    if jax.device_count() > 1:
        print(f"# mesh {chosen}, {chosen.devices} of {jax.device_count()} devices", flush=True)
    if jax.process_count() > 1 and chosen.devices < jax.device_count():
        raise UserError(
            f"mesh {chosen} has {chosen.devices} devices, and the {jax.process_count()} processes have "
            f"{jax.device_count()}, all of which must take part; start fewer processes, or change --batch_size, "
            "--gradient_accumulation_steps or --mesh so that all are used"
        )
    return chosen


def print_summary(config: TrainConfig, data: str) -> None:
    """Print what is trained, where and on which data, and with `--verbose` the resolved config."""
    if config.verbose:
        print(parsing.dump(config), end="")
    updates = f"{config.steps:,} updates of {config.batch_size:,} rows"
    print(f"{config.out}: {updates}, peak learning rate {config.learning_rate:g}; {data}", flush=True)


def check_agreement(config: TrainConfig, init: Initialization, datasets: Mapping[str, str]) -> None:
    """Raise UserError if the processes of a training differ in data, initialization or versions."""
    values = {"batch_size": config.batch_size, "steps": config.steps, "out": config.out}
    process_group.check_agreement(
        "data", values | resume.input_digests(init.origin, datasets) | resume.versions(provenance.provenance())
    )


def train_run(
    config: TrainConfig, init: Initialization, job: TrainingJob, preemption: PreemptionHandler = NEVER_PREEMPTED
) -> Run:
    """Train to `config.steps`, from the run's newest recovery checkpoint if it has one.

    Args:
        config: Resolved config.
        init: Initialization of a new run.
        job: Objective and data of the phase.
        preemption: Handler of SIGTERM.

    Returns:
        The complete run.

    Raises:
        Interrupted: SIGTERM was received, and the state is saved.
        UserError: The folder holds another run, another process trains into it, or `fit` failed.
    """
    folder = Path(config.out)
    with run.lock(folder) if process_group.is_main() else contextlib.nullcontext():
        if process_group.is_main():
            _open_folder(config, init, job)
        process_group.barrier("the run's folder")
        opened = Run(folder)  # on every host: the folder is shared
        opened.checkpoints.keep = config.keep
        if config.steps not in opened.checkpoints.shared_steps():
            _train(config, init, job, opened, preemption)
    print(f"{opened.folder} is complete at step {config.steps}")
    return opened


def _train(
    config: TrainConfig, init: Initialization, job: TrainingJob, opened: Run, preemption: PreemptionHandler
) -> None:
    mesh, optimizer = make_mesh(job.mesh), adamw(config, config.steps)
    if process_group.is_main():
        opened.checkpoints.remove_partial()
    newest = opened.checkpoints.newest_resumable()
    if newest is None and config.resume == "must" and opened.checkpoints.shared_steps():
        raise UserError(f"--resume=must, but {opened.folder} has no checkpoint to resume from; use --resume=auto")
    state = _state(config, init, job, opened, newest, mesh, optimizer)
    rate = learning_rates(config, config.steps).item
    # An adapt run saves the initial model, the baseline of every study.
    schedule = loop.Schedule(config.steps, config.save_every, config.recover_minutes * 60, first=job.phase == "adapt")
    peak = flops.peak([device.device_kind for device in mesh.devices.flat])
    sinks = loggers.open_loggers(config, opened.folder, newest or 0) if process_group.is_main() else []
    stream = lambda first: loader.batches_from(job.batches, first, config.steps)  # noqa: E731
    preemption.defer()
    with Tracker(sinks, rate, peak) as tracker, _out_of_memory_errors():
        loop.fit(
            job.objective,
            optimizer,
            state,
            stream,
            job.validation,
            schedule,
            opened.checkpoints,
            tracker,
            lambda: preemption.requested,
        )


@contextlib.contextmanager
def _out_of_memory_errors() -> Generator[None]:
    """Turn a device that runs out of memory into a one-line UserError."""
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
    config: TrainConfig,
    init: Initialization,
    job: TrainingJob,
    opened: Run,
    newest: int | None,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """Restore the checkpoint's state, or without one build the initial state; never hold both."""
    scale = precision.initial_loss_scale(job.dtype)
    if newest is None:
        params = initialization.initial_params(init, opened.slots, config.seed, mesh)
        return initial_state(params, optimizer, mesh, scale)
    print(f"resuming from {opened.folder}@{newest}", flush=True)
    shapes = factory.abstract_params(opened.architecture, opened.slots)
    return restore_state(abstract_state(mesh, optimizer, shapes, scale), opened.checkpoints, newest)


def _open_folder(config: TrainConfig, init: Initialization, job: TrainingJob) -> None:
    """Create the run's folder, or check that it may be resumed, as `--resume` says."""
    folder = Path(config.out)
    exists = (folder / "manifest.json").exists()
    if config.resume == "must" and not exists:
        raise UserError(f"--resume=must, but {folder} is not a run; check --out or use --resume=auto")
    if config.resume == "never" and exists:
        raise UserError(f"--resume=never, but {folder} is already a run; name another --out or remove it")
    if exists:
        resume.check_changes(Run(folder), config, init, job.facts["datasets"])
    else:
        _refuse_other_folder(folder)
        _create(folder, config, init, job)


def _refuse_other_folder(folder: Path) -> None:
    """Raise UserError unless the folder is new, empty, or left by an interrupted start."""
    names = {path.name for path in folder.iterdir() if path.name != ".lock" and path.suffix != ".partial"}
    is_interrupted_start = run.INITIAL_FILES[0] in names and names <= set(run.INITIAL_FILES)
    if names and not is_interrupted_start:
        raise UserError(f"{folder} holds other files ({', '.join(sorted(names)[:3])}); name another --out")


def _create(folder: Path, config: TrainConfig, init: Initialization, job: TrainingJob) -> None:
    facts = {
        "mesh": job.mesh._asdict(),
        "phase": job.phase,
        "size": config.size,
        "seed": config.seed,
        "start": init.origin,
        **job.facts,
    }
    run.create(folder, parsing.dump(config), init.architecture, init.tokenizer.json, job.templates, facts)
