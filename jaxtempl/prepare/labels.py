"""Labels and templates: which template is which slot, and which labelled messages become examples."""

import dataclasses
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from jaxtempl.errors import UserError
from jaxtempl.files import read_json
from jaxtempl.prepare.split import SPLITS
from jaxtempl.prepare.spool import SpoolFolder
from jaxtempl.text.cases import Case, Template

REPLIES = 64  # distinct reply texts counted for a template at one time
BLOCK = 1 << 16  # labels a record
_LABEL = struct.Struct("<3i")  # case, message, template number


@dataclasses.dataclass(frozen=True)
class GivenTemplate:
    """A template of the user's file."""

    id: str
    text: str
    active: bool


def read_templates(path: Path) -> list[GivenTemplate]:
    """Reads `[{"id", "text", "active"}]`.

    Raises:
        UserError: naming the entry that is not like that, or the id that comes twice.
    """
    value = read_json(path)
    if not isinstance(value, list):
        raise UserError(f'{path} is not a list; [{{"id", "text", "active"}}, ...] is allowed')
    given = [_given(path, i, entry) for i, entry in enumerate(value)]
    twice = [name for name, count in Counter(entry.id for entry in given).items() if count > 1]
    if twice:
        raise UserError(f"{path} has the id {twice[0]!r} more than once; keep one")
    return given


def _given(path: Path, i: int, entry: Any) -> GivenTemplate:
    allowed = {"id": str, "text": str, "active": bool}
    for key, kind in allowed.items():
        value = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(value, kind) or value == "":
            got = repr(value)[:60]
            raise UserError(f"{path}, entry {i}: {key!r} is {got}; a {kind.__name__} that is not empty is allowed")
    return GivenTemplate(entry["id"], entry["text"], entry["active"])


class ReplyCounter:
    """The most frequent text of a stream, in bounded memory (Metwally's space saving, exact up to `REPLIES` texts)."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, text: str) -> None:
        """Counts one reply; when full, it takes over the place and count of the rarest one."""
        if text in self._counts or len(self._counts) < REPLIES:
            self._counts[text] = self._counts.get(text, 0) + 1
            return
        rarest = min(self._counts, key=self._counts.__getitem__)
        self._counts[text] = self._counts.pop(rarest) + 1

    def best(self) -> str:
        """The most frequent; of equals the first in alphabetical order."""
        return min(self._counts, key=lambda text: (-self._counts[text], text))


class LabelCollector:
    """Gathers labels while cases stream by, then names the classes and yields the examples.

    A label is held as case index, message index and template number (templates numbered as they are met).
    """

    def __init__(self, work: SpoolFolder, given: Sequence[GivenTemplate]) -> None:
        self._given = {entry.id: entry for entry in given}
        self._numbers: dict[str, int] = {}
        self._training: Counter[str] = Counter()
        self._replies = defaultdict[str, ReplyCounter](ReplyCounter)
        self._columns = {split: work.column(f"labels.{split}", "<i4") for split in SPLITS}
        self._copied: Bool[np.ndarray, " cases"] = np.zeros(0, bool)
        self.skipped = 0  # labels with no message before them

    def add(self, split: str, index: int, case: Case) -> None:
        """Takes the labels of one case; `index` is its place in the split."""
        for i, message in enumerate(case.messages):
            if message.template is None:
                continue
            if i == 0:
                self.skipped += 1
                continue
            number = self._numbers.setdefault(message.template, len(self._numbers))
            self._columns[split].append(_LABEL.pack(index, i, number))
            if split == "train":
                self._count(message.template, message.text)

    def _count(self, template: str, text: str) -> None:
        self._training[template] += 1
        if template not in self._given:
            self._replies[template].add(text)

    def leave_out(self, copied: Bool[np.ndarray, " cases"]) -> None:
        """Takes back the labels of the marked training cases; called once, after the last `add`."""
        self._copied, names = copied, list(self._numbers)
        for case, _, number in self._blocks("train"):
            gone = np.bincount(number[copied[case]], minlength=len(names))
            self._training -= Counter(dict(zip(names, gone.tolist(), strict=True)))

    def _blocks(self, split: str) -> Iterator[Int32[np.ndarray, "3 n"]]:
        """Case, message and template number of the labels of a split."""
        return (block.reshape(-1, 3).T for block in self._columns[split].blocks(3 * BLOCK))

    def templates(self, min_count: int) -> list[Template]:
        """The classes by slot: those of the file in its order, then observed ones by falling count, then id."""
        enough = {name for name, count in self._training.items() if count >= min_count}
        listed = [name for name in self._given if name in enough]
        observed = sorted(enough - self._given.keys(), key=lambda name: (-self._training[name], name))
        return [self._template(slot, name) for slot, name in enumerate(listed + observed)]

    def _template(self, slot: int, name: str) -> Template:
        entry, count = self._given.get(name), self._training[name]
        if entry is None:
            return Template(slot, name, self._replies[name].best(), active=True, observed=True, count=count)
        return Template(slot, name, entry.text, entry.active, observed=False, count=count)

    def without_examples(self) -> int:
        """Templates of the file that no training example has."""
        return sum(name not in self._training for name in self._given)

    def under(self, templates: Sequence[Template]) -> int:
        """Templates with training examples, but too few to be a class."""
        return len(self._training) - len(templates)

    def examples(self, templates: Sequence[Template]) -> Iterator[tuple[str, dict[str, Int32[np.ndarray, " n"]]]]:
        """Blocks of labels; training labels of no class are left out, held-out ones have slot -1."""
        slots = np.full(max(len(self._numbers), 1), -1, np.int32)
        for template in templates:
            slots[self._numbers[template.id]] = template.slot
        for split in SPLITS:
            for case, message, number in self._blocks(split):
                slot = slots[number]
                keep = (slot >= 0) & ~self._copied[case] if split == "train" else np.ones(len(slot), bool)
                if keep.any():
                    yield split, {"case": case[keep], "message": message[keep], "slot": slot[keep]}

    def counts(self, templates: Sequence[Template]) -> dict[str, dict[str, int]]:
        """By split: labels written, those with slot -1, and training labels of no class or of copied cases, dropped."""
        written, unknown, dropped, copies = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
        for split, block in self.examples(templates):
            written[split] += len(block["slot"])
            unknown[split] += int((block["slot"] < 0).sum())
        copies["train"] = sum(int(self._copied[case].sum()) for case, _, _ in self._blocks("train"))
        dropped["train"] = len(self._columns["train"]) // 3 - written["train"] - copies["train"]
        names = {"labels": written, "labels_of_no_class": unknown, "labels_dropped": dropped, "labels_copied": copies}
        return {name: {split: counter[split] for split in SPLITS} for name, counter in names.items()}
