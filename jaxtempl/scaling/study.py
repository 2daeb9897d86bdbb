"""A study's file: datasets, sizes, corpora and grids -> cells, each of which is one fine-tuning, measured."""

import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from jaxtempl.config import parsing, paths
from jaxtempl.config.sizes import read_size
from jaxtempl.errors import UserError
from jaxtempl.specs import architecture
from jaxtempl.specs.architecture import Architecture

Flags = Mapping[str, Any]  # of one of the project's commands, by name
Start = Literal["random", "base", "last"]
Checkpoint = int | Start  # a step of the adaptation, or what says which


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every combination of these; empty lists of sizes and corpora mean all of the study's.

    Attributes:
        checkpoints: steps of the adaptation, `base` (not adapted), `last`, `random` (weights that nothing was trained
            of); `all` is the base and every checkpoint that is saved.
        sizes: of models.
        corpora: that they were adapted to.
        labels: contexts fine-tuned on, the first of one seeded permutation; 0 takes all.
        seeds: of the fine-tuning.
        variant: name of an ablation; empty for the study itself.
        finetune: flags of bin/finetune over the study's.
    """

    checkpoints: Literal["all"] | tuple[Checkpoint, ...] = "all"
    sizes: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    labels: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    variant: str = ""
    finetune: dict[str, Any] = {}


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the models to adapt are made, where none are published: from random weights.

    Attributes:
        data: shares of datasets.
        adapt: flags of bin/adapt.
    """

    data: dict[str, float]
    adapt: dict[str, Any]


class Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Flags of one family's models over the study's."""

    adapt: dict[str, Any] = {}
    finetune: dict[str, Any] = {}


class Study(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of configs/studies/.

    Attributes:
        name: of the study.
        task: the dataset with the labels; what is held out of it tells the domain's loss.
        datasets: flags of bin/prepare by name; files are below --data.
        sizes: of configs/sizes/.
        corpora: mixtures to adapt to: shares of datasets by name.
        adapt: flags of bin/adapt; `steps`, `batch` and `save_every` are needed.
        finetune: flags of bin/finetune.
        grids: the cells.
        prepare: flags of bin/prepare for all datasets; `length` is needed.
        base: how the models to adapt are made; without it they are the published ones.
        general: a dataset of other text, whose held-out rows tell what is forgotten; none where it is empty.
        exam: contexts of the zero-shot exam of each language model; 0 takes none.
        bert: what is otherwise for BERT.
    """

    name: str
    task: str
    datasets: dict[str, dict[str, Any]]
    sizes: tuple[str, ...]
    corpora: dict[str, dict[str, float]]
    adapt: dict[str, Any]
    finetune: dict[str, Any]
    grids: tuple[Grid, ...]
    prepare: dict[str, Any]
    base: Base | None = None
    general: str = ""
    exam: int = 0
    bert: Family = Family()

    @property
    def steps(self) -> int:
        """Updates of an adaptation."""
        return int(self.adapt["steps"])

    @property
    def saved(self) -> list[int]:
        """Steps of the checkpoints that an adaptation leaves."""
        every = int(self.adapt["save_every"])
        return [*range(every, self.steps, every), self.steps]

    def length(self, size: str) -> int:
        """Tokens of a row for a size: the study's, or as many as its model has positions."""
        return min(int(self.prepare["length"]), architecture_of(size).positions)

    def tokens(self, size: str, step: int) -> int:
        """That an adaptation has read by a step."""
        return step * int(self.adapt["batch"]) * self.length(size)


class Cell(NamedTuple):
    """One fine-tuning.

    Attributes:
        size: of the model.
        start: `adapted`, `base` or `random`.
        corpus: that it was adapted to; empty otherwise.
        step: of the adaptation; 0 otherwise.
        labels: contexts fine-tuned on; 0 takes all.
        seed: of the fine-tuning.
        variant: name of an ablation, or empty.
        finetune: its own flags.
    """

    size: str
    start: Literal["adapted", "base", "random"]
    corpus: str
    step: int
    labels: int
    seed: int
    variant: str
    finetune: Flags

    @property
    def name(self) -> str:
        """The cell's, which is that of its folder, too."""
        where = f"{self.corpus}-{self.step}" if self.start == "adapted" else self.start
        parts = [self.size, where, f"{self.labels or 'all'}-labels", f"seed-{self.seed}", self.variant]
        return "_".join(part for part in parts if part)


def path(name: str) -> Path:
    """A study's file, named by its path or, where it comes with the project, by its name."""
    own = paths.CONFIGS / "studies" / f"{name}.yaml"
    return own if own.is_file() else Path(name)


def read(path: Path) -> Study:
    """A study's file.

    Raises:
        UserError: it is missing, or says something that no study can do.
    """
    try:
        study = msgspec.convert(parsing.load(path), Study)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}; see configs/studies/laptop.yaml for a study's file") from None
    faults = list(_faults(study))
    if faults:
        raise UserError(f"{path}: {'; '.join(faults)}")
    return study


def _faults(study: Study) -> Iterator[str]:
    for where, flags, needed in (
        ("adapt", study.adapt, ("steps", "batch", "save_every")),
        ("prepare", study.prepare, ("length",)),
        ("base.adapt", study.base.adapt if study.base else {"steps": 1}, ("steps",)),
    ):
        yield from (f"{where} needs {name}: a whole number" for name in needed if type(flags.get(name)) is not int)
    used = [study.task, *([study.general] if study.general else []), *(study.base.data if study.base else ())]
    used += [name for shares in study.corpora.values() for name in shares]
    yield from _unknown("datasets", used, study.datasets)
    yield from _unknown("sizes", [name for grid in study.grids for name in grid.sizes], study.sizes)
    yield from _unknown("corpora", [name for grid in study.grids for name in grid.corpora], study.corpora)
    yield from _unsaved(study)


def _unknown(kind: str, used: Iterable[str], known: Collection[str]) -> Iterator[str]:
    for name in sorted(set(used) - set(known)):
        yield f"{name!r} is none of the study's {kind} ({', '.join(known)})"


def _unsaved(study: Study) -> Iterator[str]:
    if type(study.adapt.get("steps")) is not int or type(study.adapt.get("save_every")) is not int:
        return
    asked = {c for grid in study.grids if grid.checkpoints != "all" for c in grid.checkpoints if isinstance(c, int)}
    for step in sorted(asked - set(study.saved)):
        yield f"step {step} is not saved; these are: {', '.join(map(str, study.saved))}"


def cells(study: Study) -> list[Cell]:
    """All cells, each once, in the order of the grids."""
    found = {cell.name: cell for grid in reversed(study.grids) for cell in reversed(list(_of_grid(study, grid)))}
    return list(reversed(found.values()))


def _of_grid(study: Study, grid: Grid) -> Iterator[Cell]:
    every: tuple[Checkpoint, ...] = ("base", *study.saved)
    asked = every if grid.checkpoints == "all" else grid.checkpoints
    sizes, corpora = grid.sizes or study.sizes, grid.corpora or tuple(study.corpora)
    for size, corpus, checkpoint, labels, seed in itertools.product(sizes, corpora, asked, grid.labels, grid.seeds):
        step = study.steps if checkpoint == "last" else checkpoint if isinstance(checkpoint, int) else 0
        start = checkpoint if checkpoint in ("base", "random") else "adapted"
        own = corpus if start == "adapted" else ""
        yield Cell(size, start, own, step, labels, seed, grid.variant, grid.finetune)


@functools.cache
def architecture_of(size: str) -> Architecture:
    """The architecture of one of configs/sizes/."""
    return architecture.architecture_from(read_size(size)["architecture"])
