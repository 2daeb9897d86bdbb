"""A run: a folder of one training, complete in itself.

`config.yaml architecture.json tokenizer.json templates.json manifest.json metrics.jsonl`, `tensorboard/` or
`mlflow.json`, and `checkpoints/<step>/`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import filelock
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxtempl import files
from jaxtempl.config import parsing
from jaxtempl.config.training import TrainConfig
from jaxtempl.errors import UserError
from jaxtempl.huggingface.mapping import Head
from jaxtempl.models import factory
from jaxtempl.parallel import rules
from jaxtempl.runs.checkpoint import Checkpoints
from jaxtempl.runs.provenance import provenance
from jaxtempl.specs.architecture import Architecture, architecture_from, to_dict
from jaxtempl.text.cases import Template
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import WINDOW, Window

Phase = Literal["adapt", "finetune"]
FORMAT = 2  # of a run's manifest: some keys of config.yaml have other names since 1


class Run:
    """One run's folder, read.

    Attributes:
        folder: where it lies.
        manifest: versions, commit, datasets' fingerprints, weights' digest, seed and phase.
        architecture: of the model.
        tokenizer: the model's.
        templates: the classes by slot; empty after adapt.
        checkpoints: those it has.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError when `folder` is no run."""
        if not (folder / "manifest.json").is_file():
            raise UserError(f"{folder} is no run; bin/adapt and bin/finetune make one, named by their --out")
        self.folder = folder
        self.manifest: dict[str, Any] = files.read_json(folder / "manifest.json")
        if self.manifest.get("kind") != "run":
            raise UserError(f"{folder} is something else than a run; name a folder that bin/adapt or bin/finetune made")
        self.architecture = architecture_from(files.read_json(folder / "architecture.json"))
        self.tokenizer = Tokenizer(folder / "tokenizer.json")
        self.templates = [Template(**entry) for entry in files.read_json(folder / "templates.json")]
        self.checkpoints = Checkpoints(folder / "checkpoints")

    @functools.cached_property
    def window(self) -> Window:
        """What encodes messages for the model."""
        limit = min(self.manifest.get("length", WINDOW), self.architecture.positions)
        return Window(self.tokenizer, limit, self.manifest.get("role_tags", True))

    @property
    def phase(self) -> Phase:
        """What made it: `adapt` (a language model) or `finetune` (a template classifier)."""
        return self.manifest["phase"]

    @property
    def head(self) -> Head:
        """What the model ends in: `lm` after adapt, `template` after finetune."""
        return "template" if self.phase == "finetune" else "lm"

    @property
    def slots(self) -> int | None:
        """Of the template head; None after adapt, which ends in a language model's."""
        return len(self.templates) if self.phase == "finetune" else None

    @property
    def outputs(self) -> int:
        """Columns of the head: vocabulary rows or slots."""
        return self.architecture.vocabulary if self.slots is None else self.slots

    def graphdef(self, dtype: Any = jnp.float32) -> nnx.GraphDef[Any]:
        """The model's static half."""
        return factory.make_graphdef(self.architecture, self.slots, dtype)

    def params(self, step: int, mesh: Mesh | None = None) -> PyTree:
        """Return the parameters of a checkpoint in float32, sharded over `mesh` or on this process's first device."""
        shapes = factory.abstract_params(self.architecture, self.slots)
        if mesh is None:
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shardings = jax.tree.map(lambda _: device, shapes)
        else:
            shardings = rules.shardings(mesh, shapes)
        return self.checkpoints.params(step, rules.with_shardings(shapes, shardings))

    def temperature(self, step: int) -> float:
        """That bin/evaluate fitted for this very checkpoint; 1 without one."""
        path = self.folder / "calibration.json"
        fitted = files.read_json(path)["steps"] if path.exists() else {}
        return float(fitted[str(step)]["temperature"]) if str(step) in fitted else 1.0

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return iter(files.read_lines(self.folder / "metrics.jsonl"))


CREATED = ("config.yaml", "tokenizer.json", "architecture.json", "templates.json")  # before the manifest


def create(
    folder: Path,
    config: str,
    architecture: Architecture,
    tokenizer_json: str,
    templates: Sequence[Template],
    manifest: Mapping[str, Any],
) -> Run:
    """Writes all of a new run but what training adds; the manifest comes last, so a torn start is no run."""
    folder.mkdir(parents=True, exist_ok=True)
    config_yaml, tokenizer, architecture_json, templates_json = (folder / name for name in CREATED)
    _write_text(config_yaml, config)
    _write_text(tokenizer, tokenizer_json)
    files.write_json(architecture_json, to_dict(architecture))
    files.write_json(templates_json, [dataclasses.asdict(template) for template in templates])
    files.write_json(folder / "manifest.json", {"format": FORMAT, "kind": "run", **provenance(), **manifest})
    return Run(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the resolved config of a run under today's keys, whatever release wrote it."""
    return parsing.current_keys(TrainConfig, parsing.load(folder / "config.yaml"))


def record_changes(opened: Run, config: str, facts: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Writes into a run what is to be otherwise from its newest checkpoint on, and that it was otherwise before."""
    told = [*opened.manifest.get("changes", []), {"after": opened.checkpoints.steps()[-1:], **changes}]
    files.write_json(opened.folder / "manifest.json", {**opened.manifest, **facts, "format": FORMAT, "changes": told})
    _write_text(opened.folder / "config.yaml", config)


@contextlib.contextmanager
def lock(folder: Path) -> Generator[None]:
    """Keeps other processes from training into `folder`, made if it is missing; a killed holder lets go of it.

    Raises:
        UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = filelock.FileLock(folder / ".lock").acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"{folder} is being trained by another process; wait for it, end it, or name another --out"
        ) from None
    except NotImplementedError:
        raise UserError(f"the file system of {folder} has no locks (flock); name an --out on one that has") from None
    with lock:
        yield


def _write_text(path: Path, content: str) -> None:
    with files.atomic_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def resolve(reference: str) -> tuple[Run, int]:
    """RUN, RUN@STEP, RUN@last or RUN@best as a run and one of its steps.

    `best` is the checkpoint of least validation loss in metrics.jsonl. RUN alone is that of a finetune, where one was
    measured, and the last of an adapt.

    Raises:
        UserError: no such run, no such step, or no checkpoint yet.
    """
    name, at, which = reference.rpartition("@")
    if not at or Path(reference).is_dir():  # no step named, or a folder with an @ in its name
        name, which = reference, ""
    run = Run(Path(name))
    steps = run.checkpoints.steps()
    if not steps:
        raise UserError(f"{name} has no checkpoint yet; let its training reach the first, or start it again")
    best = _best(run, steps)
    if which == "best" and best is None:
        raise UserError(f"{run.folder} has no validation loss to choose the best by; name a step or @last")
    if which not in ("", "last", "best") and which not in map(str, steps):
        raise UserError(f"{reference} is no checkpoint; there are @last, @best and {', '.join(f'@{s}' for s in steps)}")
    named = {"last": steps[-1], "best": best, "": best if run.phase == "finetune" else None}
    return run, int(which) if which.isdecimal() else named[which] or steps[-1]


def _best(run: Run, steps: Sequence[int]) -> int | None:
    measured = [
        (m["validation_loss"], m["step"]) for m in run.metrics() if "validation_loss" in m and m["step"] in steps
    ]
    return min(measured)[1] if measured else None
