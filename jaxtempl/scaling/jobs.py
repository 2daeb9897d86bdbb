"""A study's cells -> jobs: the project's own commands, what each waits for, and what it leaves.

All lies in one folder: `data/`, `base/` and `adapted/` (runs), `language/` (what language models were measured to be),
`alignment/`, and `cells/`. A job is done when the file that it `makes` is there, so that nothing has to be remembered,
and it can start when the files that it `needs` are: a cell of an early checkpoint does not wait for the last one.

A cell's fine-tuned checkpoints, one an epoch, are taken away once it is measured; what it says of itself stays.
"""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtempl.config import sizes
from jaxtempl.data import mlm
from jaxtempl.scaling.study import Cell, Flags, Study, architecture_of
from jaxtempl.specs import flops
from jaxtempl.specs.architecture import BertArchitecture

FILES = ("transcripts", "train", "validation", "test", "documents", "templates")  # flags of bin/prepare that name them
EVERY_LABEL = 30_000  # where a cell takes all labels, for guessing how long it lasts before any is counted


@dataclasses.dataclass(frozen=True)
class Job:
    """Commands that make one thing.

    Attributes:
        name: its place below the study's folder.
        commands: of `bin/`, with their flags, one after the other.
        needs: files that must be there first.
        makes: the file that says it is done.
        work: operations that it takes, as far as jobs of its kind are compared by them.
        spare: a folder that is of no use when it is done.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[Path, ...]
    makes: Path
    work: float = 1.0
    spare: Path | None = None

    @property
    def kind(self) -> str:
        """Jobs of one kind last as long as their work says."""
        return self.name.partition("/")[0]

    @property
    def done(self) -> bool:
        """Whether it is."""
        return self.makes.exists()

    @property
    def ready(self) -> bool:
        """Whether it can start."""
        return all(path.exists() for path in self.needs)

    def finish(self) -> None:
        """Takes away what is of no more use."""
        if self.spare:
            shutil.rmtree(self.spare, ignore_errors=True)


def flags(*given: Flags) -> list[str]:
    """As a command takes them; later ones win."""
    merged = {name: value for part in given for name, value in part.items()}
    return [f"--{name}={_told(value)}" for name, value in merged.items()]


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Jobs:
    """The jobs of a study.

    Args:
        study: its file.
        out: its folder.
        data: folder that the files of its datasets are below.
    """

    def __init__(self, study: Study, out: Path, data: Path) -> None:
        self.study, self.out, self.data = study, out, data

    def of(self, wanted: Sequence[Cell]) -> list[Job]:
        """All that these cells need, and themselves, in an order that can be kept."""
        found = {job.name: job for cell in wanted for job in self._for(cell)}
        kinds = ("data", "alignment", "base", "adapted", "language", "cells")
        return sorted(found.values(), key=lambda job: kinds.index(job.kind))

    def _for(self, cell: Cell) -> Iterator[Job]:
        """What a cell needs, and the cell."""
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
        if cell.start != "random":
            yield self._language(cell)
        yield self.cell(cell)

    def dataset(self, name: str, size: str) -> Path:
        """Folder of a dataset with rows for a size."""
        tokenizer = sizes.read_size(size)["tokenizer"]
        return self.out / "data" / f"{name}-{tokenizer}-{self.study.length(size)}"

    def base(self, size: str) -> Path:
        """Run of a base."""
        return self.out / "base" / size

    def adapted(self, size: str, corpus: str) -> Path:
        """Run of an adaptation."""
        return self.out / "adapted" / f"{size}_{corpus}"

    def language(self, cell: Cell) -> Path:
        """Folder of what a cell's language model was measured to be."""
        where = f"{cell.size}_{cell.corpus}" if cell.start == "adapted" else f"{cell.size}_base"
        return self.out / "language" / f"{where}_{cell.step}"

    def alignment(self, cell: Cell) -> Path:
        """File of a corpus's alignment with the task."""
        return self.out / "alignment" / f"{self.dataset(cell.corpus, cell.size).name}.json"

    def folder(self, cell: Cell) -> Path:
        """Folder of a cell."""
        return self.out / "cells" / cell.name

    def _data(self, name: str, size: str) -> Job:
        out = self.dataset(name, size)
        given = {
            flag: _below(self.data, value) if flag in FILES else value
            for flag, value in self.study.datasets[name].items()
        }
        own = {"size": size, "length": self.study.length(size), "overwrite": True, "out": out}
        command = ("prepare", *flags(self.study.prepare, given, own))
        return Job(f"data/{out.name}", (command,), (), out / "manifest.json")

    def _mixture(self, shares: Mapping[str, float], size: str) -> str:
        return ",".join(f"{self.dataset(name, size)}:{share:g}" for name, share in shares.items())

    def _prepared(self, names: Sequence[str], size: str) -> tuple[Path, ...]:
        return tuple(self.dataset(name, size) / "manifest.json" for name in names)

    def _base(self, size: str) -> Job:
        assert self.study.base
        out, data, given = self.base(size), self.study.base.data, self.study.base.adapt
        own = {"size": size, "weights": "random", "data": self._mixture(data, size), "out": out}
        command = ("adapt", *flags(self.given("adapt", size, {}), given, own))
        makes = _checkpoint(out, int(given["steps"]))
        batch = int(given.get("batch", self.study.adapt["batch"]))
        work = int(given["steps"]) * batch * self._operations(size)
        return Job(f"base/{size}", (command,), self._prepared(list(data), size), makes, work)

    def _adapted(self, cell: Cell) -> Job:
        out, shares = self.adapted(cell.size, cell.corpus), self.study.corpora[cell.corpus]
        own = {"data": self._mixture(shares, cell.size), "out": out}
        command = ("adapt", *flags(self._start(cell.size), self.given("adapt", cell.size, {}), own))
        work = self.study.steps * int(self.study.adapt["batch"]) * self._operations(cell.size)
        needs = (*self._prepared(list(shares), cell.size), *self._base_made(cell.size))
        return Job(f"adapted/{out.name}", (command,), needs, _checkpoint(out, self.study.steps), work)

    def _operations(self, size: str) -> float:
        """Of training a language model on one row."""
        a, length = architecture_of(size), self.study.length(size)
        if isinstance(a, BertArchitecture):
            return float(flops.per_masked_row(a, length, mlm.masked_count(length)))
        return float(flops.per_token(a, length) * length)

    def adapt_operations(self, size: str, step: int) -> float:
        """Of an adaptation up to a step, exactly: all matrix products, forward and backward."""
        return step * int(self.study.adapt["batch"]) * self._operations(size)

    def _start(self, size: str) -> Flags:
        return {"from": self.base(size)} if self.study.base else {"size": size}

    def _base_made(self, size: str) -> tuple[Path, ...]:
        return (_checkpoint(self.base(size), int(self.study.base.adapt["steps"])),) if self.study.base else ()

    def given(self, phase: str, size: str, own: Flags) -> Flags:
        """The study's flags of a training, the family's over them, and those of a grid over both."""
        family = self.study.bert if architecture_of(size).family == "bert" else None
        return {**getattr(self.study, phase), **(getattr(family, phase) if family else {}), **own}

    def _alignment(self, cell: Cell) -> Job:
        makes, task = self.alignment(cell), self.dataset(self.study.task, cell.size)
        shares = self.study.corpora[cell.corpus]
        own = {"data": self._mixture(shares, cell.size), "task": task, "size": cell.size, "out": makes}
        needs = self._prepared([*shares, self.study.task], cell.size)
        return Job(f"alignment/{makes.stem}", (("scaling", "align", *flags(own)),), needs, makes)

    def _model(self, cell: Cell) -> tuple[str, tuple[Path, ...]]:
        """The language model of a cell as a run's checkpoint, and the file that says it is there."""
        if cell.start == "adapted":
            run, step = self.adapted(cell.size, cell.corpus), cell.step
        elif self.study.base:
            run, step = self.base(cell.size), int(self.study.base.adapt["steps"])
        else:
            run, step = self.adapted(cell.size, next(iter(self.study.corpora))), 0
        return f"{run}@{step}", (_checkpoint(run, step),)

    def _language(self, cell: Cell) -> Job:
        """Loss on the domain's held-out cases, with the exam, and on held-out rows of the general text."""
        out, (run, needs) = self.language(cell), self._model(cell)
        bert = architecture_of(cell.size).family == "bert"
        domain = {"data": self.dataset(self.study.task, cell.size), "zero_shot": 0 if bert else self.study.exam}
        commands = [("evaluate", *flags({"run": run, "out": out / "domain", **domain}))]
        needs += self._prepared([self.study.task], cell.size)
        if self.study.general:
            general = {"data": self.dataset(self.study.general, cell.size), "split": "validation"}
            commands.insert(0, ("evaluate", *flags({"run": run, "out": out / "general", **general})))
            needs += self._prepared([self.study.general], cell.size)
        return Job(f"language/{out.name}", tuple(commands), needs, out / "domain" / "report.json")

    def cell(self, cell: Cell) -> Job:
        """Fine-tunes and measures."""
        out, data = self.folder(cell), self.dataset(self.study.task, cell.size)
        start: Flags = {"size": cell.size, "weights": "random"} if cell.start == "random" else self._start(cell.size)
        needs = () if cell.start == "random" else self._base_made(cell.size)
        if cell.start == "adapted":
            run, needs = self._model(cell)
            start = {"from": run}
        own = {"labels": cell.labels, "seed": cell.seed, "data": data, "out": out / "run"}
        given = self.given("finetune", cell.size, cell.finetune)
        commands = (
            ("finetune", *flags(start, given, own)),
            ("evaluate", *flags({"run": out / "run", "data": data, "baselines": False, "out": out / "report"})),
        )
        needs += self._prepared([self.study.task], cell.size)
        makes, spare = out / "report" / "report.json", out / "run" / "checkpoints"
        return Job(f"cells/{cell.name}", commands, needs, makes, self._cell_work(cell, given), spare)

    def _cell_work(self, cell: Cell, given: Flags) -> float:
        """Operations of a fine-tuning, as if every window were full."""
        a, length = architecture_of(cell.size), int(given.get("length", 512))
        contexts = (cell.labels or EVERY_LABEL) * float(given.get("epochs", 1))
        return contexts * flops.per_context(a, length, 1)


def _checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / str(step) / "manifest.json"


def _below(folder: Path, value: Any) -> Any:
    """Names of files as paths below a folder; addresses stay."""
    if isinstance(value, list):
        return [_below(folder, one) for one in value]
    return value if "://" in value else folder / value


def shard(wanted: Sequence[Cell], which: int, of: int) -> list[Cell]:
    """Every N-th cell, which mixes the long with the short.

    Args:
        wanted: all cells.
        which: from 1 on.
        of: shards.
    """
    return list(wanted)[which - 1 :: of]
