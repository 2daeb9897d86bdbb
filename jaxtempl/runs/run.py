"""A run: the self-contained folder of one training.

It holds `config.yaml architecture.json tokenizer.json templates.json manifest.json metrics.jsonl`, `tensorboard/` or
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
from jaxtempl.text.redaction.recorded import recorded_redact
from jaxtempl.text.templates import read_templates
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import WINDOW, Window

Phase = Literal["adapt", "finetune"]
FORMAT = 2  # of a run's manifest; format 2 renamed some keys of config.yaml


class Run:
    """The contents of a run's folder.

    Attributes:
        folder: Path of the folder.
        manifest: Versions, commit, datasets' fingerprints, weights' digest, seed and phase.
        architecture: Architecture of the model.
        tokenizer: Tokenizer of the model.
        templates: Classes by slot; empty after adapt.
        checkpoints: Checkpoints of the run.
    """

    def __init__(self, folder: Path) -> None:
        """Raise UserError if `folder` is not a run, or its tokenizer has ids that its embedding lacks."""
        if not (folder / "manifest.json").is_file():
            raise UserError(f"{folder} is not a run; name the --out of a bin/adapt or bin/finetune")
        self.folder = folder
        self.manifest: dict[str, Any] = files.read_json(folder / "manifest.json")
        if self.manifest.get("kind") != "run":
            raise UserError(
                f"{folder} is a {self.manifest.get('kind')}, not a run; name the --out of a bin/adapt or bin/finetune"
            )
        self.architecture = architecture_from(files.read_json(folder / "architecture.json"))
        self.tokenizer = Tokenizer(folder / "tokenizer.json")
        self.tokenizer.check_rows(self.architecture.vocabulary, str(folder))
        self.templates = read_templates(folder / "templates.json")
        self.checkpoints = Checkpoints(folder / "checkpoints")

    @functools.cached_property
    def window(self) -> Window:
        """Window that encodes messages for the model."""
        limit = min(self.manifest.get("length", WINDOW), self.architecture.positions)
        redact = recorded_redact(self.manifest, self.folder / "manifest.json", serves=False)
        return Window(self.tokenizer, limit, self.manifest.get("role_tags", True), redact=redact)

    @property
    def phase(self) -> Phase:
        """Phase that made the run: `adapt` (a language model) or `finetune` (a template classifier)."""
        return self.manifest["phase"]

    @property
    def head(self) -> Head:
        """Kind of head: `lm` after adapt, `template` after finetune."""
        return "template" if self.phase == "finetune" else "lm"

    @property
    def slots(self) -> int | None:
        """Columns of the template head; None for a language-model head."""
        return len(self.templates) if self.phase == "finetune" else None

    @property
    def outputs(self) -> int:
        """Columns of the head: vocabulary size or slots."""
        return self.architecture.vocabulary if self.slots is None else self.slots

    def graphdef(self, dtype: Any = jnp.float32) -> nnx.GraphDef[Any]:
        """Return the model's graphdef."""
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

    def dataset_folder(self, given: str, reason: str) -> Path:
        """Return the dataset that a flag names, or the run's first training dataset that still exists.

        Args:
            given: Value of `--data`; may be empty.
            reason: Clause that states why a dataset is needed.

        Raises:
            UserError: No dataset is given, and none of the run's exists.
        """
        if given:
            return Path(given)
        trained_on = list(self.manifest["datasets"])
        existing = next((Path(name) for name in trained_on if Path(name).is_dir()), None)
        if existing is None:
            names = ", ".join(trained_on) or "none is recorded"
            raise UserError(f"the dataset of {self.folder} ({names}) is missing, and {reason}; pass --data=DIR")
        return existing

    def temperature(self, step: int) -> float:
        """Return the temperature that bin/evaluate fitted for this checkpoint; 1 without one."""
        path = self.folder / "calibration.json"
        fitted = files.read_json(path)["steps"] if path.exists() else {}
        return float(fitted[str(step)]["temperature"]) if str(step) in fitted else 1.0

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Return the records of metrics.jsonl."""
        return iter(files.read_lines(self.folder / "metrics.jsonl"))


INITIAL_FILES = ("config.yaml", "tokenizer.json", "architecture.json", "templates.json")  # written before the manifest


def create(
    folder: Path,
    config: str,
    architecture: Architecture,
    tokenizer_json: str,
    templates: Sequence[Template],
    manifest: Mapping[str, Any],
) -> Run:
    """Write the files of a new run. The manifest comes last, so that an interrupted start is not a run."""
    folder.mkdir(parents=True, exist_ok=True)
    config_yaml, tokenizer, architecture_json, templates_json = (folder / name for name in INITIAL_FILES)
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
    """Write a run's new config and facts, and record in the manifest what changed after its newest checkpoint."""
    history = [*opened.manifest.get("changes", []), {"after": opened.checkpoints.steps()[-1:], **changes}]
    files.write_json(
        opened.folder / "manifest.json", {**opened.manifest, **facts, "format": FORMAT, "changes": history}
    )
    _write_text(opened.folder / "config.yaml", config)


@contextlib.contextmanager
def lock(folder: Path) -> Generator[None]:
    """Lock `folder` against training by other processes; create it if it is missing. A killed process frees its lock.

    Raises:
        UserError: Another process holds the lock, or the file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = filelock.FileLock(folder / ".lock").acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"another process trains into {folder}; wait for it, end it, or name another --out") from None
    except NotImplementedError:
        raise UserError(f"the file system of {folder} has no locks (flock); name an --out on one with locks") from None
    with lock:
        yield


def _write_text(path: Path, content: str) -> None:
    with files.atomic_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def resolve(reference: str) -> tuple[Run, int]:
    """Return the run and step that RUN, RUN@STEP, RUN@last or RUN@best names.

    `best` is the checkpoint with the lowest validation loss in metrics.jsonl. RUN alone means `best` for a
    finetune with a validation loss, and `last` otherwise.

    Raises:
        UserError: No such run, no such step, or no checkpoint yet.
    """
    name, at, which = reference.rpartition("@")
    is_step = which in ("last", "best") or which.isdecimal() or ("/" not in which and Path(name).is_dir())
    if not at or not is_step or Path(reference).is_dir():  # no step, or an @ in the name of a folder
        name, which = reference, ""
    run = Run(Path(name))
    steps = run.checkpoints.steps()
    if not steps:
        raise UserError(f"{name} has no checkpoint yet; let its training reach the first one, or start it again")
    best = _best(run, steps)
    if which == "best" and best is None:
        raise UserError(f"{run.folder} has no validation loss, which @best needs; name a step or @last")
    if which not in ("", "last", "best") and which not in map(str, steps):
        raise UserError(
            f"{reference} is not a checkpoint; allowed: @last, @best and {', '.join(f'@{s}' for s in steps)}"
        )
    aliases = {"last": steps[-1], "best": best, "": best if run.phase == "finetune" else None}
    return run, int(which) if which.isdecimal() else aliases[which] or steps[-1]


def _best(run: Run, steps: Sequence[int]) -> int | None:
    """Return the step with the lowest validation loss, or None without one."""
    losses = [(m["validation_loss"], m["step"]) for m in run.metrics() if "validation_loss" in m and m["step"] in steps]
    return min(losses)[1] if losses else None
