"""The jobs of a study: the project's own commands, with the files that each job needs and creates.

A study's folder holds `data/`, `base/` and `adapted/` (runs), `language/` (evaluations of language models),
`alignment/`, and `cells/`. A job is done when its output file exists, so no other state is kept. It can start when
its inputs exist: a cell of an early checkpoint does not wait for the last one.

A cell's fine-tuned checkpoints are deleted after its evaluation; its reports stay.
"""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtempl.data import mlm
from jaxtempl.scaling.study import Cell, CommandFlags, Study, architecture_of, tokenizer_of
from jaxtempl.specs import flops
from jaxtempl.specs.architecture import BertArchitecture

FILE_FLAGS = ("transcripts", "train", "validation", "test", "documents", "templates")  # of bin/prepare
ASSUMED_LABELS = 30_000  # of a cell that takes all labels, for its estimated duration before any are counted
KINDS = ("data", "alignment", "base", "adapted", "annealed", "language", "cells")


@dataclasses.dataclass(frozen=True)
class Job:
    """Commands that create one output.

    Attributes:
        name: Path of the output's folder in the study's folder.
        commands: Commands of `bin/` with their flags, in order.
        inputs: Files that must exist first.
        output: File whose existence marks the job as done.
        operations: Amount of work, comparable between jobs of one kind.
        scratch: Folder to delete when the job is done.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    inputs: tuple[Path, ...]
    output: Path
    operations: float = 1.0
    scratch: Path | None = None

    @property
    def kind(self) -> str:
        """The kind of the job; the duration of jobs of one kind is linear in their operations."""
        return self.name.partition("/")[0]

    @property
    def is_done(self) -> bool:
        """True if the output exists."""
        return self.output.exists()

    @property
    def is_ready(self) -> bool:
        """True if all inputs exist."""
        return all(path.exists() for path in self.inputs)

    def clean_up(self) -> None:
        """Delete the scratch folder."""
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)


def format_flags(*flags: CommandFlags) -> list[str]:
    """Return flags as command-line arguments; later mappings override earlier ones."""
    merged = {name: value for part in flags for name, value in part.items()}
    return [f"--{name}={_format_value(value)}" for name, value in merged.items()]


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Jobs:
    """The jobs of a study.

    Args:
        study: Study.
        out: Folder of the study.
        data: Folder that the files of its datasets are relative to.
    """

    def __init__(self, study: Study, out: Path, data: Path) -> None:
        self.study, self.out, self.data = study, out, data

    def resolve(self, cells: Sequence[Cell]) -> list[Job]:
        """Return the jobs of the cells and of everything that they need, in an executable order."""
        by_name = {job.name: job for cell in cells for job in self._for(cell)}
        return sorted(by_name.values(), key=lambda job: KINDS.index(job.kind))

    def _for(self, cell: Cell) -> Iterator[Job]:
        yield self._data(self.study.task, cell.size)
        if self.study.general:
            yield self._data(self.study.general, cell.size)
        if self.study.base and cell.start != "random":
            yield from (self._data(name, cell.size) for name in self.study.base.data)
            yield self._base(cell.size)
        if cell.start == "adapted":
            yield from (self._data(name, cell.size) for name in self.study.corpora[cell.corpus])
            yield self._alignment(cell)
            yield self._adapted(cell)
            if self.study.anneal:
                yield self._annealed(cell)
        if cell.start != "random":
            yield self._language(cell)
        yield self.cell(cell)

    def dataset(self, name: str, size: str) -> Path:
        """Return the folder of a dataset with rows for a size."""
        return self.out / "data" / f"{name}-{tokenizer_of(size)}-{self.study.length(size)}"

    def base(self, size: str) -> Path:
        """Return the run of a size's base."""
        return self.out / "base" / size

    def adapted(self, size: str, corpus: str) -> Path:
        """Return the run of an adaptation."""
        return self.out / "adapted" / f"{size}_{corpus}"

    def model(self, cell: Cell) -> tuple[Path, int]:
        """Return the run and the step of an adapted cell's language model: of its annealed branch, if there is one."""
        run = self.adapted(cell.size, cell.corpus)
        if not self.study.anneal:
            return run, cell.step
        return self.out / "annealed" / f"{run.name}_{cell.step}", self.study.anneal

    def language(self, cell: Cell) -> Path:
        """Return the folder with the evaluations of a cell's language model."""
        where = f"{cell.size}_{cell.corpus}" if cell.start == "adapted" else f"{cell.size}_base"
        return self.out / "language" / f"{where}_{cell.step}"

    def alignment(self, cell: Cell) -> Path:
        """Return the file with a corpus's alignment with the task."""
        return self.out / "alignment" / f"{self.dataset(cell.corpus, cell.size).name}.json"

    def folder(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.out / "cells" / cell.name

    def _data(self, name: str, size: str) -> Job:
        out = self.dataset(name, size)
        dataset = {
            flag: _below(self.data, value) if flag in FILE_FLAGS else value
            for flag, value in self.study.datasets[name].items()
        }
        fixed = {"size": size, "length": self.study.length(size), "overwrite": True, "out": out}
        command = ("prepare", *format_flags(self.study.prepare, dataset, fixed))
        return Job(f"data/{out.name}", (command,), (), out / "manifest.json")

    def _mixture(self, shares: Mapping[str, float], size: str) -> str:
        return ",".join(f"{self.dataset(name, size)}:{share:g}" for name, share in shares.items())

    def _manifests(self, names: Sequence[str], size: str) -> tuple[Path, ...]:
        return tuple(self.dataset(name, size) / "manifest.json" for name in names)

    def _base(self, size: str) -> Job:
        assert self.study.base
        out, data, flags = self.base(size), self.study.base.data, self.study.base.adapt
        fixed = {"size": size, "weights": "random", "data": self._mixture(data, size), "out": out}
        command = ("adapt", *format_flags(self.flags("adapt", size, {}), flags, fixed))
        output = _checkpoint(out, int(flags["steps"]))
        batch_size = int(flags.get("batch_size", self.study.batch_size))
        operations = int(flags["steps"]) * batch_size * self._row_operations(size)
        return Job(f"base/{size}", (command,), self._manifests(list(data), size), output, operations)

    def _adapted(self, cell: Cell) -> Job:
        out, shares = self.adapted(cell.size, cell.corpus), self.study.corpora[cell.corpus]
        fixed = {"data": self._mixture(shares, cell.size), "out": out}
        if self.study.anneal:
            fixed |= {"schedule": "wsd", "decay_at": self.study.steps - 1}  # hold the rate
        command = ("adapt", *format_flags(self._start(cell.size), self.flags("adapt", cell.size, {}), fixed))
        operations = self.study.steps * self.study.batch_size * self._row_operations(cell.size)
        inputs = (*self._manifests(list(shares), cell.size), *self._base_checkpoint(cell.size))
        return Job(f"adapted/{out.name}", (command,), inputs, _checkpoint(out, self.study.steps), operations)

    def _annealed(self, cell: Cell) -> Job:
        """Return the branch of a checkpoint: other rows than the adaptation's first ones, at a rate that falls to 0."""
        (out, steps), shares = self.model(cell), self.study.corpora[cell.corpus]
        flags, trunk = self.flags("adapt", cell.size, {}), self.adapted(cell.size, cell.corpus)
        fixed = {
            **{"from": f"{trunk}@{cell.step}", "data": self._mixture(shares, cell.size), "out": out},
            **{"steps": steps, "save_every": steps, "schedule": "linear", "seed": int(flags.get("seed", 0)) + 1},
        }
        inputs = (*self._manifests(list(shares), cell.size), _checkpoint(trunk, cell.step))
        operations = steps * self.study.batch_size * self._row_operations(cell.size)
        command = ("adapt", *format_flags(flags, fixed))
        return Job(f"annealed/{out.name}", (command,), inputs, _checkpoint(out, steps), operations)

    def _row_operations(self, size: str) -> float:
        """Return the operations of training a language model on one row."""
        a, length = architecture_of(size), self.study.length(size)
        if isinstance(a, BertArchitecture):
            return float(flops.per_masked_row(a, length, mlm.masked_count(length)))
        return float(flops.per_token(a, length) * length)

    def adapt_operations(self, size: str, step: int) -> float:
        """Return the exact operations behind the model of a step: all matrix products, forward and backward."""
        return self.study.updates(step) * self.study.batch_size * self._row_operations(size)

    def _start(self, size: str) -> CommandFlags:
        return {"from": self.base(size)} if self.study.base else {"size": size}

    def _base_checkpoint(self, size: str) -> tuple[Path, ...]:
        return (_checkpoint(self.base(size), int(self.study.base.adapt["steps"])),) if self.study.base else ()

    def flags(self, phase: str, size: str, overrides: CommandFlags) -> CommandFlags:
        """Return the flags of a training: the study's, overridden by the family's, overridden by a grid's."""
        family = self.study.bert if architecture_of(size).family == "bert" else None
        return {**getattr(self.study, phase), **(getattr(family, phase) if family else {}), **overrides}

    def _alignment(self, cell: Cell) -> Job:
        output, task = self.alignment(cell), self.dataset(self.study.task, cell.size)
        shares = self.study.corpora[cell.corpus]
        flags = {"data": self._mixture(shares, cell.size), "task": task, "size": cell.size, "out": output}
        inputs = self._manifests([*shares, self.study.task], cell.size)
        return Job(f"alignment/{output.stem}", (("scaling", "align", *format_flags(flags)),), inputs, output)

    def _language_model(self, cell: Cell) -> tuple[str, tuple[Path, ...]]:
        """Return a cell's language model as RUN@STEP, and the manifest of its checkpoint."""
        if cell.start == "adapted":
            run, step = self.model(cell)
        elif self.study.base:
            run, step = self.base(cell.size), int(self.study.base.adapt["steps"])
        else:
            run, step = self.adapted(cell.size, next(iter(self.study.corpora))), 0
        return f"{run}@{step}", (_checkpoint(run, step),)

    def _language(self, cell: Cell) -> Job:
        """Evaluate a language model on the domain's held-out cases and on held-out general text."""
        out, (run, inputs) = self.language(cell), self._language_model(cell)
        zero_shot = 0 if architecture_of(cell.size).family == "bert" else self.study.zero_shot
        domain = {"data": self.dataset(self.study.task, cell.size), "zero_shot": zero_shot}
        commands = [("evaluate", *format_flags({"run": run, "out": out / "domain", **domain}))]
        inputs += self._manifests([self.study.task], cell.size)
        if self.study.general:
            general = {"data": self.dataset(self.study.general, cell.size), "split": "validation"}
            commands.insert(0, ("evaluate", *format_flags({"run": run, "out": out / "general", **general})))
            inputs += self._manifests([self.study.general], cell.size)
        return Job(f"language/{out.name}", tuple(commands), inputs, out / "domain" / "report.json")

    def cell(self, cell: Cell) -> Job:
        """Return the job that fine-tunes and evaluates a cell."""
        out, data = self.folder(cell), self.dataset(self.study.task, cell.size)
        start, inputs = self._finetune_start(cell)
        fixed = {"labels": cell.labels, "seed": cell.seed, "data": data, "out": out / "run"}
        flags = self.flags("finetune", cell.size, cell.finetune)
        evaluate = {"run": out / "run", "data": data, "baselines": False, "out": out / "report"}
        return Job(
            f"cells/{cell.name}",
            (("finetune", *format_flags(start, flags, fixed)), ("evaluate", *format_flags(evaluate))),
            inputs + self._manifests([self.study.task], cell.size),
            out / "report" / "report.json",
            self._finetune_operations(cell, flags),
            out / "run" / "checkpoints",
        )

    def _finetune_start(self, cell: Cell) -> tuple[CommandFlags, tuple[Path, ...]]:
        """Return the flags that name a cell's initial weights, and the files that hold them."""
        if cell.start == "random":
            return {"size": cell.size, "weights": "random"}, ()
        if cell.start == "adapted":
            run, inputs = self._language_model(cell)
            return {"from": run}, inputs
        return self._start(cell.size), self._base_checkpoint(cell.size)

    def _finetune_operations(self, cell: Cell, flags: CommandFlags) -> float:
        """Return the operations of a fine-tuning as if every window were full."""
        a, length = architecture_of(cell.size), int(flags.get("length", 512))
        contexts = (cell.labels or ASSUMED_LABELS) * float(flags.get("epochs", 1))
        return contexts * flops.per_context(a, length, 1)


def _checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / str(step) / "manifest.json"


def _below(folder: Path, value: Any) -> Any:
    """Return names of files as paths below a folder; URLs stay."""
    if isinstance(value, list):
        return [_below(folder, one) for one in value]
    return value if "://" in value else folder / value


def shard(cells: Sequence[Cell], index: int, count: int) -> list[Cell]:
    """Return every `count`-th cell, which mixes long and short ones.

    Args:
        cells: All cells.
        index: Index of the shard, from 1.
        count: Number of shards.
    """
    return list(cells)[index - 1 :: count]
