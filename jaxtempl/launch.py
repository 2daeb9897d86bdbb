"""From a resolved config to fit(): the run's folder, where to start or resume, and how far to go."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grain
import jax
import yaml

from jaxtempl import batches, boards, config, flops, optim, partition, precision, run, start, train
from jaxtempl.batches import Batch
from jaxtempl.cases import Template
from jaxtempl.config import TrainConfig
from jaxtempl.errors import UserError
from jaxtempl.models.neox import Architecture
from jaxtempl.partition import Shape
from jaxtempl.run import Phase, Run
from jaxtempl.start import Start
from jaxtempl.tasks import Task
from jaxtempl.tracking import Tracker

PIECE = 8192  # tokens computed at a time on a device unless --accumulate says otherwise; 2 M at once fit none
# What a resumed training may say differently: it changes where and how it is computed, not what.
FREE_TO_CHANGE = {"resume", "recover_minutes", "mesh.data", "mesh.fsdp", "mesh.tensor", "remat", "tracker"}

Settings = TypeVar("Settings", bound=TrainConfig)


class Work(NamedTuple):
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
    task: Task
    batches: grain.MapDataset
    validation: Callable[[], Iterable[Batch]] | None
    mesh: Shape
    dtype: jax.numpy.dtype
    templates: Sequence[Template]
    facts: dict[str, Any]


def resolved(asked: Settings, phase: Phase, steps: int, saves: int, length: int) -> Settings:
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
        accumulate=asked.accumulate or pieces(asked.batch, length, jax.device_count()),
        out=asked.out or f"runs/{phase}-{asked.size}",
    )


def pieces(batch: int, length: int, devices: int) -> int:
    """The fewest equal pieces of a batch that are of at most PIECE tokens a device; a row is never cut."""
    most = PIECE * devices
    return next(n for n in range(1, batch + 1) if batch % n == 0 and (batch // n * length <= most or n == batch))


def mesh(settings: TrainConfig, architecture: Architecture, outputs: int, rows: int) -> Shape:
    """The mesh that the flags ask for, or the best that fits the model and the rows of a microbatch.

    Raises:
        UserError: none such fits.
    """
    asked = Shape(settings.mesh_data, settings.mesh_fsdp, settings.mesh_tensor)
    chosen = partition.choose(asked, run.abstract_params(architecture, outputs), rows, jax.device_count())
    if jax.device_count() > 1:
        print(f"# mesh {chosen}, {chosen.devices} of {jax.device_count()} devices", flush=True)
    return chosen


def show(settings: TrainConfig, fact: str) -> None:
    """Prints the resolved config and what the data came to."""
    print(f"{config.dump(settings)}# {fact}", flush=True)


def train_run(settings: TrainConfig, begin: Start, work: Work) -> Run:
    """Trains to `settings.steps`, from the run's newest recovery checkpoint if it has one, and says so.

    Raises:
        UserError: the folder holds another run, another process trains it, or what `fit` raises.
    """
    with run.held(Path(settings.out)):
        opened = _opened(settings, begin, work)
        if settings.steps not in opened.checkpoints.steps():
            _train(settings, begin, work, opened)
    print(f"{opened.folder} is complete at step {settings.steps}")
    return opened


def _train(settings: TrainConfig, begin: Start, work: Work, opened: Run) -> None:
    mesh = partition.make_mesh(work.mesh)
    optimizer = optim.adamw(settings, settings.steps)
    outputs = opened.outputs
    params = start.parameters(begin, outputs, settings.seed, work.phase == "finetune", mesh)
    state = train.initial_state(params, optimizer, mesh, precision.loss_scale(work.dtype))
    opened.checkpoints.sweep()
    newest = opened.checkpoints.resumable()
    if newest is not None:
        print(f"going on from {opened.folder}@{newest}")
        state = train.resume(state, opened.checkpoints, newest)
    rate = optim.learning_rate(settings, settings.steps)
    # An adapt run keeps the model as it was, which every study compares with.
    plan = train.Plan(settings.steps, settings.save_every, settings.recover_minutes * 60, first=work.phase == "adapt")
    peak = flops.peak([device.device_kind for device in mesh.devices.flat])
    with Tracker(boards.opened(settings, opened.folder, newest or 0), rate, peak) as tracker:
        stream = lambda first: batches.from_step(work.batches, first, settings.steps)  # noqa: E731
        train.fit(work.task, optimizer, state, stream, work.validation, plan, opened.checkpoints, tracker)


def _opened(settings: TrainConfig, begin: Start, work: Work) -> Run:
    """The run's folder, new or gone on with, as `--resume` says."""
    folder = Path(settings.out)
    exists = (folder / "manifest.json").exists()
    if settings.resume == "must" and not exists:
        raise UserError(f"--resume=must, but {folder} is no run; check --out or use --resume=auto")
    if settings.resume == "never" and exists:
        raise UserError(f"--resume=never, but {folder} is a run already; name another --out or remove it")
    if exists:
        opened = Run(folder)
        _refuse_other_settings(folder, settings)
        _refuse_other_inputs(opened, begin, work)
        return opened
    _refuse_other_folder(folder)
    return _created(folder, settings, begin, work)


def _refuse_other_folder(folder: Path) -> None:
    """A run is made in a new folder, an empty one, or one where a start was cut off."""
    found = {path.name for path in folder.iterdir() if path.name != ".lock" and path.suffix != ".partial"}
    torn = run.CREATED[0] in found and found <= set(run.CREATED)
    if found and not torn:
        raise UserError(f"{folder} holds other files ({', '.join(sorted(found)[:3])}); name another --out")


def _refuse_other_inputs(opened: Run, begin: Start, work: Work) -> None:
    """What has the same name may have other content."""
    started = opened.manifest["start"]
    old = {"dataset": opened.manifest["datasets"], "start": started.get("weights_sha256")}
    new = {"dataset": work.facts["datasets"], "start": begin.origin.get("weights_sha256")}
    changed = " and ".join(what for what in old if old[what] != new[what])
    if changed:
        raise UserError(
            f"{opened.folder} began with another {changed}, says its manifest.json; bring it back or name another --out"
        )


def _created(folder: Path, settings: TrainConfig, begin: Start, work: Work) -> Run:
    facts = {
        "mesh": work.mesh._asdict(),
        "phase": work.phase,
        "size": settings.size,
        "seed": settings.seed,
        "start": begin.origin,
        **work.facts,
    }
    tokenizer = begin.tokenizer.read_text(encoding="utf-8")
    return run.create(folder, config.dump(settings), begin.architecture, tokenizer, work.templates, facts)


def _refuse_other_settings(folder: Path, settings: TrainConfig) -> None:
    old, new = config.load(folder / "config.yaml"), yaml.safe_load(config.dump(settings))
    changed = [k for k in {**old, **new} if k not in FREE_TO_CHANGE and old.get(k) != new.get(k)]
    if changed:
        values = "; ".join(f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in changed)
        raise UserError(f"{folder} was trained by other settings ({values}); use the same, or name another --out")
