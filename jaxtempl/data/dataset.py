"""A prepared dataset: random access to its cases and rows, and its labels in memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, SupportsIndex, TypeVar, overload

import msgspec
import numpy as np
from jaxtyping import Int32, UInt16

from jaxtempl import files
from jaxtempl.errors import UserError
from jaxtempl.text.cases import Case, Message
from jaxtempl.text.templates import read_templates
from jaxtempl.text.tokenizer import Tokenizer

SPLITS = ("train", "validation", "test")

PackedRow = dict[str, UInt16[np.ndarray, " length"]]
Item = TypeVar("Item")


class Labels(NamedTuple):
    """Labelled messages of one split, as columns of 12 bytes a label.

    Attributes:
        case: index into `Dataset.cases(split)`.
        message: index of the labelled message in its case; the context is the messages before it.
        slot: the template's slot; -1 where it is not a class (never in the training split).
    """

    case: Int32[np.ndarray, " n"]
    message: Int32[np.ndarray, " n"]
    slot: Int32[np.ndarray, " n"]


class SplitRecords(Sequence[Item], Generic[Item]):
    """Random access to the records of one TFDS split; a split that was never written is empty.

    Files are opened on first use, and again in a copy that is pickled to another process.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self._opened: Any = None

    def _decode(self, record: dict[str, Any]) -> Item:
        raise NotImplementedError

    @property
    def _source(self) -> Any:
        if self._opened is None:
            self._opened = _open(self._folder, self._split)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return self.__getitems__(range(len(self))[index])
        return self._decode(self._source[range(len(self))[index]])

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[Item]:
        """Return several records, read in parallel; grain calls this method."""
        if not indices:
            return []
        return [self._decode(record) for record in self._source.__getitems__([int(i) for i in indices])]

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))


class Cases(SplitRecords[Case]):
    """Random access to the cases of one split."""

    def _decode(self, record: dict[str, Any]) -> Case:
        messages = tuple(Message(*message) for message in msgspec.json.decode(record["messages"]))
        return Case(record["case_id"].decode(), messages)


class Rows(SplitRecords[PackedRow]):
    """Random access to the packed rows of one split."""

    def _decode(self, record: dict[str, Any]) -> PackedRow:
        return {"tokens": record["tokens"], "segments": record["segments"]}


def _open(folder: Path, split: str) -> Any:
    """Return the TFDS data source of a split; an empty list if none of its examples was written."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(folder / "1.0.0")
    return builder.as_data_source(split) if split in builder.info.splits else []


class Dataset:
    """A dataset that `bin/prepare` wrote.

    Attributes:
        folder: the dataset's folder.
        manifest: content of `manifest.json`.
        fingerprint: hex digest of all content.
        templates: the classes, by slot.
    """

    def __init__(self, folder: Path) -> None:
        """Open a dataset; raises UserError if `folder` is not one."""
        if not (folder / "manifest.json").is_file():
            raise UserError(f"{folder} is not a dataset; make one with bin/prepare --transcripts=PATH --out={folder}")
        self.folder = folder
        self.manifest: dict[str, Any] = files.read_json(folder / "manifest.json")
        if self.manifest.get("kind") != "dataset":
            raise UserError(
                f"{folder} is not a dataset, but of kind {self.manifest.get('kind')!r}; name a folder that bin/prepare "
                "wrote"
            )
        self.fingerprint: str = self.manifest["fingerprint"]
        self.templates = read_templates(folder / "templates.json")

    def cases(self, split: str) -> Sequence[Case]:
        """Return the cases of a split."""
        return Cases(self.folder / "cases", _checked(split))

    def labels(self, split: str) -> Labels:
        """Return all labels of a split, in memory."""
        blocks = list(_open(self.folder / "labels", _checked(split)))
        empty = np.empty(0, np.int32)
        return Labels(*(np.concatenate([empty, *(block[name] for block in blocks)]) for name in Labels._fields))

    def rows(self, tokenizer: Tokenizer, split: str) -> Sequence[PackedRow]:
        """Return the packed rows of a split: `{"tokens", "segments"}`, uint16 [length] each; segment 0 is padding.

        Raises:
            UserError: the dataset has no rows of this tokenizer.
        """
        folder = self.folder / "rows" / tokenizer.sha256
        if not folder.is_dir():
            raise UserError(
                f"{self.folder} has no rows of this tokenizer ({tokenizer.sha256[:12]}), only of "
                f"{self.manifest['tokenizer'][:12]}; prepare again with the model's --tokenizer=FILE or --size=SIZE"
            )
        return Rows(folder, _checked(split))


def _checked(split: str) -> str:
    if split not in SPLITS:
        raise UserError(f"split is {split!r}; one of {', '.join(SPLITS)} is allowed")
    return split
