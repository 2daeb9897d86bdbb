"""From a resolved config to fit(): the run's folder, where to start or resume, and how far to go."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grain
import yaml

from jaxtempl import batches, config, optim, run, start, train
from jaxtempl.batches import Batch
from jaxtempl.cases import Template
from jaxtempl.config import TrainConfig
from jaxtempl.errors import UserError
from jaxtempl.run import Phase, Run
from jaxtempl.start import Start
from jaxtempl.tasks import Task
from jaxtempl.tracking import Tracker

FREE_TO_CHANGE = {"resume", "recover_minutes"}  # what a resumed training may say differently

Settings = TypeVar("Settings", bound=TrainConfig)


class Work(NamedTuple):
    """What one phase brings to the training that both share.

    Attributes:
        phase: adapt or finetune.
        task: its loss and metrics.
        batches: the batch of each step.
        validation: the held-out batches, made anew at each call; None where nothing is held out.
        templates: the classes; none for adapt.
        facts: what the manifest says beyond what every run's says.
    """

    phase: Phase
    task: Task
    batches: grain.MapDataset
    validation: Callable[[], Iterable[Batch]] | None
    templates: Sequence[Template]
    facts: dict[str, Any]


def resolved(asked: Settings, phase: Phase, steps: int, saves: int) -> Settings:
    """The config with every number that depends on the data filled in.

    Args:
        asked: what flags and files say.
        phase: names the default folder.
        steps: updates that the epochs come to.
        saves: study checkpoints, unless `save_every` says how often.
    """
    steps = asked.steps or min(steps, asked.max_steps)
    every = asked.save_every or max(steps // saves, 1)
    return dataclasses.replace(asked, steps=steps, save_every=every, out=asked.out or f"runs/{phase}-{asked.size}")


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
    optimizer = optim.adamw(settings, settings.steps)
    outputs = opened.outputs
    params = start.parameters(begin, outputs, settings.seed, new_head=work.phase == "finetune")
    state = train.initial_state(params, optimizer)
    newest = opened.checkpoints.resumable()
    if newest is None and work.phase == "adapt":  # the unadapted model, which every study compares with
        opened.checkpoints.save(0, "study", state.params, None, {"step": 0})
    if newest is not None:
        print(f"going on from {opened.folder}@{newest}")
        state = train.resume(state, opened.checkpoints, newest)
    rate = optim.learning_rate(settings, settings.steps)
    plan = train.Plan(settings.steps, settings.save_every, settings.recover_minutes * 60)
    with Tracker(opened.folder, settings.steps, newest or 0, rate) as tracker:
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
        _refuse_other_settings(folder, settings)
        return Run(folder)
    return _created(folder, settings, begin, work)


def _created(folder: Path, settings: TrainConfig, begin: Start, work: Work) -> Run:
    facts = {"phase": work.phase, "size": settings.size, "seed": settings.seed, "start": begin.origin, **work.facts}
    tokenizer = begin.tokenizer.read_text(encoding="utf-8")
    return run.create(folder, config.dump(settings), begin.architecture, tokenizer, work.templates, facts)


def _refuse_other_settings(folder: Path, settings: TrainConfig) -> None:
    old, new = config.load(folder / "config.yaml"), yaml.safe_load(config.dump(settings))
    changed = [k for k in {**old, **new} if k not in FREE_TO_CHANGE and old.get(k) != new.get(k)]
    if changed:
        values = "; ".join(f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in changed)
        raise UserError(f"{folder} was trained by other settings ({values}); use the same, or name another --out")
