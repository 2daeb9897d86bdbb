"""A study file: datasets, sizes, corpora and grids, which expand to cells; each cell is one measured fine-tuning."""

import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from jaxtempl.config import parsing, paths
from jaxtempl.config.sizes import read_size
from jaxtempl.config.training import AdaptConfig, FinetuneConfig
from jaxtempl.errors import UserError
from jaxtempl.specs import architecture
from jaxtempl.specs.architecture import Architecture

FORMAT = 2  # version of a study file; version 1 had `exam` and the flags' earlier names

CommandFlags = Mapping[str, Any]  # of one of the project's commands, by name
CheckpointName = int | Literal["random", "base", "last"]  # a step of the adaptation, or a name


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every combination of its lists; empty lists of sizes and corpora mean all of the study's.

    Attributes:
        checkpoints: Steps of the adaptation, `base` (not adapted), `last`, or `random` (untrained weights); `all` is
            the base and every saved checkpoint.
        sizes: Sizes of models.
        corpora: Corpora of the adaptation.
        labels: Numbers of labelled contexts, the first of one seeded permutation; 0 takes all.
        seeds: Seeds of the fine-tuning.
        variant: Name of an ablation; empty for the study itself.
        finetune: Flags of bin/finetune that override the study's.
    """

    checkpoints: Literal["all"] | tuple[CheckpointName, ...] = "all"
    sizes: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    labels: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    variant: str = ""
    finetune: dict[str, Any] = {}


class BaseTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Training of the base models from random weights, where none are published.

    Attributes:
        data: Shares of datasets.
        adapt: Flags of bin/adapt.
    """

    data: dict[str, float]
    adapt: dict[str, Any]


class FamilyFlags(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Flags of one model family that override the study's."""

    adapt: dict[str, Any] = {}
    finetune: dict[str, Any] = {}


class Study(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of configs/studies/.

    Attributes:
        name: Name of the study.
        task: Dataset with the labels; its held-out cases give the domain loss.
        datasets: Flags of bin/prepare by name; files are relative to --data.
        sizes: Names in configs/sizes/.
        corpora: Mixtures to adapt to: shares of datasets by name.
        adapt: Flags of bin/adapt; `steps`, `batch_size` and `save_every` are required.
        finetune: Flags of bin/finetune.
        grids: Grids of cells.
        prepare: Flags of bin/prepare for all datasets; `length` is required.
        base: Training of the base models; without it they are the published ones.
        general: Dataset of other text, whose held-out rows measure forgetting; empty for none.
        zero_shot: Contexts of each language model's zero-shot evaluation; 0 skips it.
        bert: Flags that differ for BERT.
        anneal: Updates of a branch that leaves the adaptation at each checkpoint and takes its rate to 0, so that cells
            compare annealed models; the adaptation holds its rate. 0 compares checkpoints of one decaying rate.
        format: Version of the file's format.
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
    base: BaseTraining | None = None
    general: str = ""
    zero_shot: int = 0
    bert: FamilyFlags = FamilyFlags()
    anneal: int = 0
    format: int = FORMAT

    @property
    def steps(self) -> int:
        """Updates of an adaptation."""
        return int(self.adapt["steps"])

    @property
    def batch_size(self) -> int:
        """Rows of an update of an adaptation."""
        return int(self.adapt["batch_size"])

    @property
    def saved_steps(self) -> list[int]:
        """Steps of an adaptation's checkpoints."""
        every = int(self.adapt["save_every"])
        return [*range(every, self.steps, every), self.steps]

    def length(self, size: str) -> int:
        """Return the tokens of a row: the study's length, or the model's positions if they are fewer."""
        return min(int(self.prepare["length"]), architecture_of(size).positions)

    def updates(self, step: int) -> int:
        """Return the updates behind the model of a step, its annealed branch included."""
        return step + self.anneal if step else 0

    def tokens(self, size: str, step: int) -> int:
        """Return the tokens that the model of a step has read."""
        return self.updates(step) * self.batch_size * self.length(size)


class Cell(NamedTuple):
    """One fine-tuning.

    Attributes:
        size: Size of the model.
        start: `adapted`, `base` or `random`.
        corpus: Corpus of the adaptation; empty if not adapted.
        step: Step of the adaptation; 0 if not adapted.
        labels: Labelled contexts; 0 takes all.
        seed: Seed of the fine-tuning.
        variant: Name of an ablation, or empty.
        finetune: Flags of bin/finetune that override the study's.
    """

    size: str
    start: Literal["adapted", "base", "random"]
    corpus: str
    step: int
    labels: int
    seed: int
    variant: str
    finetune: CommandFlags

    @property
    def name(self) -> str:
        """The name of the cell and of its folder."""
        where = f"{self.corpus}-{self.step}" if self.start == "adapted" else self.start
        parts = [self.size, where, f"{self.labels or 'all'}-labels", f"seed-{self.seed}", self.variant]
        return "_".join(part for part in parts if part)


def find(name: str) -> Path:
    """Return the path of a study file that is named by its path or by its name in configs/studies/."""
    included = paths.CONFIGS / "studies" / f"{name}.yaml"
    return included if included.is_file() else Path(name)


def read(path: Path) -> Study:
    """Read a study file; the keys of earlier formats get their current names.

    Raises:
        UserError: The file is missing, newer than this release, or describes an impossible study.
    """
    content = parsing.load(path)
    version = content.get("format", 1)
    if isinstance(version, int) and version > FORMAT:
        raise UserError(f"{path} has format {version}; this release reads up to {FORMAT}: update jaxtempl")
    try:
        study = msgspec.convert(_migrate(content), Study)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}; see configs/studies/laptop.yaml for an example") from None
    faults = list(_faults(study))
    if faults:
        raise UserError(f"{path}: {'; '.join(faults)}")
    return study


def _migrate(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with the current names of keys and of the commands' flags."""
    migrated = {"zero_shot" if key == "exam" else key: value for key, value in content.items()}
    migrated |= _current_flags(migrated)
    for name in ("base", "bert"):
        if isinstance(migrated.get(name), dict):
            migrated[name] = {**migrated[name], **_current_flags(migrated[name])}
    if isinstance(migrated.get("grids"), list):
        grids = migrated["grids"]
        migrated["grids"] = [{**grid, **_current_flags(grid)} if isinstance(grid, dict) else grid for grid in grids]
    return migrated


def _current_flags(section: Mapping[str, Any]) -> dict[str, Any]:
    configs = {"adapt": AdaptConfig, "finetune": FinetuneConfig}
    return {
        phase: parsing.current_keys(config, section[phase])
        for phase, config in configs.items()
        if isinstance(section.get(phase), dict)
    }


def _faults(study: Study) -> Iterator[str]:
    for where, flags, required in (
        ("adapt", study.adapt, ("steps", "batch_size", "save_every")),
        ("prepare", study.prepare, ("length",)),
        ("base.adapt", study.base.adapt if study.base else {"steps": 1}, ("steps",)),
    ):
        yield from (f"{where} needs {name}: a whole number" for name in required if type(flags.get(name)) is not int)
    if study.anneal < 0:
        yield f"anneal is {study.anneal}; it needs a number of updates, or 0 for no branches"
    datasets = [study.task, *([study.general] if study.general else []), *(study.base.data if study.base else ())]
    datasets += [name for shares in study.corpora.values() for name in shares]
    yield from _unknown("datasets", datasets, study.datasets)
    yield from _unknown("sizes", [name for grid in study.grids for name in grid.sizes], study.sizes)
    yield from _unknown("corpora", [name for grid in study.grids for name in grid.corpora], study.corpora)
    yield from _unsaved(study)


def _unknown(kind: str, used: Iterable[str], defined: Collection[str]) -> Iterator[str]:
    for name in sorted(set(used) - set(defined)):
        yield f"{name!r} is not one of the study's {kind} ({', '.join(defined)})"


def _unsaved(study: Study) -> Iterator[str]:
    if type(study.adapt.get("steps")) is not int or type(study.adapt.get("save_every")) is not int:
        return
    names = [name for grid in study.grids if grid.checkpoints != "all" for name in grid.checkpoints]
    for step in sorted({name for name in names if isinstance(name, int)} - set(study.saved_steps)):
        yield f"step {step} is not saved; the saved steps are {', '.join(map(str, study.saved_steps))}"


def cells(study: Study) -> list[Cell]:
    """Return all cells, each once, in the order of the grids."""
    by_name = {cell.name: cell for grid in reversed(study.grids) for cell in reversed(list(_expand(study, grid)))}
    return list(reversed(by_name.values()))


def _expand(study: Study, grid: Grid) -> Iterator[Cell]:
    every: tuple[CheckpointName, ...] = ("base", *study.saved_steps)
    names = every if grid.checkpoints == "all" else grid.checkpoints
    sizes, corpora = grid.sizes or study.sizes, grid.corpora or tuple(study.corpora)
    for size, corpus, name, labels, seed in itertools.product(sizes, corpora, names, grid.labels, grid.seeds):
        step = study.steps if name == "last" else name if isinstance(name, int) else 0
        start = name if name in ("base", "random") else "adapted"
        yield Cell(size, start, corpus if start == "adapted" else "", step, labels, seed, grid.variant, grid.finetune)


@functools.cache
def architecture_of(size: str) -> Architecture:
    """Return the architecture of a size in configs/sizes/."""
    return architecture.architecture_from(read_size(size)["architecture"])


@functools.cache
def tokenizer_of(size: str) -> str:
    """Return the name of a size's tokenizer."""
    return str(read_size(size)["tokenizer"])
