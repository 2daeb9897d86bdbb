"""From a resolved config to fit(): the run's folder, where to start or resume, and how far to go."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grain
import jax
import yaml

from jaxtempl import batches, boards, cluster, config, flops, optim, partition, precision, run, start, train
from jaxtempl.batches import Batch
from jaxtempl.cases import Template
from jaxtempl.config import TrainConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.interrupt import Terminator
from jaxtempl.models import build
from jaxtempl.models.neox import Architecture
from jaxtempl.partition import Shape
from jaxtempl.run import Phase, Run
from jaxtempl.start import Start
from jaxtempl.tasks import Task
from jaxtempl.tracking import Tracker

PIECE = 8192  # tokens computed at a time on a device unless --accumulate says otherwise; 2 M at once fit none
# What a resumed training may say differently: it changes where and how it is computed, not what.
FREE_TO_CHANGE = {
    *("resume", "allow_change", "recover_minutes", "keep", "accumulate", "remat", "tracker"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "coordinator", "num_processes", "process_id"),
}
VERSIONS = ("jaxtempl", "jax", "flax", "optax")  # another one of these may compute another number

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
    chosen = partition.choose(asked, build.abstract_params(architecture, outputs), rows, jax.device_count())
    if jax.device_count() > 1:
        print(f"# mesh {chosen}, {chosen.devices} of {jax.device_count()} devices", flush=True)
    return chosen


def show(settings: TrainConfig, fact: str) -> None:
    """Prints the resolved config and what the data came to."""
    print(f"{config.dump(settings)}# {fact}", flush=True)


def train_run(settings: TrainConfig, begin: Start, work: Work) -> Run:
    """Trains to `settings.steps`, from the run's newest recovery checkpoint if it has one, and says so.

    Raises:
        UserError: the folder holds another run, another process trains it, the processes of this training disagree,
            or what `fit` raises.
    """
    cluster.agree("settings", _agreed(settings, begin, work))
    folder = Path(settings.out)
    with run.held(folder) if cluster.is_main() else contextlib.nullcontext():
        if cluster.is_main():
            _open(settings, begin, work)
        cluster.wait_for_all("the run's folder")
        opened = Run(folder)  # on every host: they share the folder
        opened.checkpoints.keep = settings.keep
        if settings.steps not in opened.checkpoints.steps():
            _train(settings, begin, work, opened)
    print(f"{opened.folder} is complete at step {settings.steps}")
    return opened


def _agreed(settings: TrainConfig, begin: Start, work: Work) -> dict[str, Any]:
    """What all processes of a training must say alike; which one each is, is its own."""
    alike = dataclasses.replace(settings, process_id=0)
    return yaml.safe_load(config.dump(alike)) | _inputs(begin.origin, work.facts) | _versions(run.provenance())


def _train(settings: TrainConfig, begin: Start, work: Work, opened: Run) -> None:
    mesh = partition.make_mesh(work.mesh)
    optimizer = optim.adamw(settings, settings.steps)
    outputs = opened.outputs
    params = start.parameters(begin, outputs, settings.seed, work.phase == "finetune", mesh)
    state = train.initial_state(params, optimizer, mesh, precision.loss_scale(work.dtype))
    if cluster.is_main():
        opened.checkpoints.sweep()
    newest = opened.checkpoints.resumable()
    if newest is not None:
        print(f"going on from {opened.folder}@{newest}", flush=True)
        state = train.resume(state, opened.checkpoints, newest)
    rate = optim.rates(settings, settings.steps).item
    # An adapt run keeps the model as it was, which every study compares with.
    plan = train.Plan(settings.steps, settings.save_every, settings.recover_minutes * 60, first=work.phase == "adapt")
    peak = flops.peak([device.device_kind for device in mesh.devices.flat])
    told = boards.opened(settings, opened.folder, newest or 0) if cluster.is_main() else []
    stream = lambda first: batches.from_step(work.batches, first, settings.steps)  # noqa: E731
    with Terminator() as terminator, Tracker(told, rate, peak) as tracker:
        train.fit(
            work.task,
            optimizer,
            state,
            stream,
            work.validation,
            plan,
            opened.checkpoints,
            tracker,
            lambda: terminator.asked,
        )


def _open(settings: TrainConfig, begin: Start, work: Work) -> None:
    """Makes the run's folder, or sees that it may be gone on with, as `--resume` says."""
    folder = Path(settings.out)
    exists = (folder / "manifest.json").exists()
    if settings.resume == "must" and not exists:
        raise UserError(f"--resume=must, but {folder} is no run; check --out or use --resume=auto")
    if settings.resume == "never" and exists:
        raise UserError(f"--resume=never, but {folder} is a run already; name another --out or remove it")
    if exists:
        _refuse_changes(Run(folder), settings, begin, work)
    else:
        _refuse_other_folder(folder)
        _create(folder, settings, begin, work)


def _refuse_other_folder(folder: Path) -> None:
    """A run is made in a new folder, an empty one, or one where a start was cut off."""
    found = {path.name for path in folder.iterdir() if path.name != ".lock" and path.suffix != ".partial"}
    torn = run.CREATED[0] in found and found <= set(run.CREATED)
    if found and not torn:
        raise UserError(f"{folder} holds other files ({', '.join(sorted(found)[:3])}); name another --out")


def _refuse_changes(opened: Run, settings: TrainConfig, begin: Start, work: Work) -> None:
    """What has changed since the run began, unless it may; what may is written into the run.

    Raises:
        UserError: something else has changed, or `--allow_change` names what is not there.
    """
    facts = {"versions": run.provenance()["versions"], "start": begin.origin, "datasets": work.facts["datasets"]}
    old, new = _known(opened.folder / "config.yaml", opened.manifest), _known(config.dump(settings), facts)
    unknown = set(settings.allow_change) - set(new)
    if unknown:
        raise UsageError(f"--allow_change={min(unknown)!r} is unknown; allowed: {', '.join(new)}")
    changed = {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}
    refused = {name: values for name, values in changed.items() if name not in settings.allow_change}
    if refused:
        told = "; ".join(f"{name} was {was!r}, is {now!r}" for name, (was, now) in refused.items())
        raise UserError(
            f"{opened.folder} began otherwise ({told}); bring that back, name another --out, or pass "
            f"--allow_change={','.join(refused)}"
        )
    if changed:
        told = {name: {"was": was, "is": now} for name, (was, now) in changed.items()}
        run.change(opened, config.dump(settings), facts, told)


def _known(settings: Path | str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All of a run by which a change is known, each by the name that `--allow_change` takes."""
    values = config.load(settings) if isinstance(settings, Path) else yaml.safe_load(settings)
    kept = {name: value for name, value in values.items() if name not in FREE_TO_CHANGE}
    return kept | _inputs(facts["start"], facts) | _versions(facts)


def _versions(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts["versions"].get(name) for name in VERSIONS}


def _inputs(origin: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Short digests of the dataset and of the weights, which may change under the same name."""
    weights = "".join(sorted((origin.get("weights_sha256") or {}).values()))
    dataset = "".join(facts["datasets"].values())
    return {
        name: hashlib.sha256(text.encode()).hexdigest()[:12]
        for name, text in (("dataset", dataset), ("start", weights))
    }


def _create(folder: Path, settings: TrainConfig, begin: Start, work: Work) -> None:
    facts = {
        "mesh": work.mesh._asdict(),
        "phase": work.phase,
        "size": settings.size,
        "seed": settings.seed,
        "start": begin.origin,
        **work.facts,
    }
    tokenizer = begin.tokenizer.read_text(encoding="utf-8")
    run.create(folder, config.dump(settings), begin.architecture, tokenizer, work.templates, facts)
