"""Labels and templates: the slot of each template, and the labelled messages that become examples."""

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
from jaxtempl.text.cases import Case, RecordError, Template, template_id

REPLIES = 64  # distinct reply texts that are counted for a template
BLOCK = 1 << 16  # labels per record
_LABEL = struct.Struct("<3i")  # case, message, template number


@dataclasses.dataclass(frozen=True)
class GivenTemplate:
    """A template in the user's file."""

    id: str
    text: str
    active: bool


def read_given_templates(path: Path) -> list[GivenTemplate]:
    """Read `[{"id", "text", "active"}]`.

    Raises:
        UserError: an entry has another form, or an id occurs twice or cannot be kept.
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
        if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
            got = repr(value)[:60]
            raise UserError(f"{path}, entry {i}: {key!r} is {got}; a {kind.__name__} that is not blank is allowed")
    try:
        return GivenTemplate(str(template_id(entry["id"])), entry["text"], entry["active"])
    except RecordError as error:
        raise UserError(f"{path}, entry {i}: {error}; shorten or correct it") from None


class ReplyCounter:
    """The most frequent text of a stream in bounded memory (Metwally's Space-Saving, exact up to `REPLIES` texts)."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, text: str) -> None:
        """Count one reply; when the counter is full, it inherits the count of the rarest one, which is dropped."""
        if text in self._counts or len(self._counts) < REPLIES:
            self._counts[text] = self._counts.get(text, 0) + 1
            return
        rarest = min(self._counts, key=self._counts.__getitem__)
        self._counts[text] = self._counts.pop(rarest) + 1

    def most_frequent(self) -> str:
        """Return the most frequent text, empty if there is none; among equals, the first in alphabetical order."""
        return min(self._counts, key=lambda text: (-self._counts[text], text), default="")


class LabelCollector:
    """Collects labels while cases are read, then decides the classes and yields the examples.

    A label is stored as case index, message index and template number, in the order in which templates occur.
    """

    def __init__(self, spool: SpoolFolder, given: Sequence[GivenTemplate], ancestor: Sequence[Template] = ()) -> None:
        """Collect labels.

        Args:
            spool: Folder of temporary columns.
            given: Templates of the user's file.
            ancestor: Templates by slot of the run or bundle whose slots are kept.
        """
        self._given = {entry.id: entry for entry in given}
        self._ancestor = ancestor
        self._numbers: dict[str, int] = {}
        self._training: Counter[str] = Counter()
        self._replies = defaultdict[str, ReplyCounter](ReplyCounter)
        self._columns = {split: spool.column(f"labels.{split}", "<i4") for split in SPLITS}
        self._copied: Bool[np.ndarray, " cases"] = np.zeros(0, bool)
        self.skipped = 0  # labels without a text before them

    def given_texts(self) -> dict[str, str]:
        """Return the text by id of the templates in the user's file."""
        return {entry.id: entry.text for entry in self._given.values()}

    def add(self, split: str, index: int, case: Case) -> None:
        """Add the labels of one case; `index` is its index in the split."""
        has_context = False
        for i, message in enumerate(case.messages):
            if message.template is not None and has_context:
                number = self._numbers.setdefault(message.template, len(self._numbers))
                self._columns[split].append(_LABEL.pack(index, i, number))
                if split == "train":
                    self._count(message.template, message.text)
            self.skipped += message.template is not None and not has_context
            has_context = has_context or bool(message.text)

    def _count(self, template: str, text: str) -> None:
        self._training[template] += 1
        if text and template not in self._given:
            self._replies[template].add(text)

    def leave_out(self, copied: Bool[np.ndarray, " cases"]) -> None:
        """Leave out the labels of the marked training cases; called once, after the last `add`."""
        self._copied, names = copied, list(self._numbers)
        for case, _, number in self._blocks("train"):
            dropped = np.bincount(number[copied[case]], minlength=len(names))
            self._training -= Counter(dict(zip(names, dropped.tolist(), strict=True)))

    def _blocks(self, split: str) -> Iterator[Int32[np.ndarray, "3 n"]]:
        """Yield blocks of the case, message and template number of each label of a split."""
        return (block.reshape(-1, 3).T for block in self._columns[split].blocks(3 * BLOCK))

    def templates(self, min_count: int) -> list[Template]:
        """Return the classes by slot: the ancestor's, then new ones.

        New ones are those of the file in its order, then observed ones by count, then id.
        """
        enough = {name for name, count in self._training.items() if count >= min_count}
        kept = [self._inherited(template, template.id in enough) for template in self._ancestor]
        enough -= {template.id for template in kept}
        listed = [name for name in self._given if name in enough]
        observed = sorted(enough - self._given.keys(), key=lambda name: (-self._training[name], name))
        return kept + [self._template(slot, name) for slot, name in enumerate(listed + observed, len(kept))]

    def _inherited(self, template: Template, is_used: bool) -> Template:
        """Return a template of the ancestor as the user's file has it now.

        One that is not in the file stays as it was if it occurs in the training cases and no file had it; otherwise it
        is retired.
        """
        if template.id in self._given:
            return self._template(template.slot, template.id)
        was_listed = bool(self._given) and not template.observed
        is_active = template.active and is_used and not was_listed
        return dataclasses.replace(template, active=is_active, count=self._training[template.id])

    def _template(self, slot: int, name: str) -> Template:
        entry, count = self._given.get(name), self._training[name]
        if entry is None:
            return Template(slot, name, self._replies[name].most_frequent(), active=True, observed=True, count=count)
        return Template(slot, name, entry.text, entry.active, observed=False, count=count)

    def count_without_examples(self) -> int:
        """Return the number of templates of the file without a training example."""
        return sum(name not in self._training for name in self._given)

    def count_rare(self, templates: Sequence[Template]) -> int:
        """Return the number of templates with too few training examples to be a class."""
        return len(self._training.keys() - {template.id for template in templates})

    def examples(self, templates: Sequence[Template]) -> Iterator[tuple[str, dict[str, Int32[np.ndarray, " n"]]]]:
        """Yield blocks of labels; training labels without a class are left out, held-out ones have slot -1."""
        slots = np.full(max(len(self._numbers), 1), -1, np.int32)
        for template in templates:
            if template.id in self._numbers:  # an ancestor's template may occur no more
                slots[self._numbers[template.id]] = template.slot
        for split in SPLITS:
            for case, message, number in self._blocks(split):
                slot = slots[number]
                keep = (slot >= 0) & ~self._copied[case] if split == "train" else np.ones(len(slot), bool)
                if keep.any():
                    yield split, {"case": case[keep], "message": message[keep], "slot": slot[keep]}

    def counts(self, templates: Sequence[Template]) -> dict[str, dict[str, int]]:
        """Return the numbers of labels by split: written, without a class, dropped, and dropped with a copied case."""
        written, unknown, dropped, copies = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
        for split, block in self.examples(templates):
            written[split] += len(block["slot"])
            unknown[split] += int((block["slot"] < 0).sum())
        copies["train"] = sum(int(self._copied[case].sum()) for case, _, _ in self._blocks("train"))
        dropped["train"] = len(self._columns["train"]) // 3 - written["train"] - copies["train"]
        names = {"labels": written, "labels_of_no_class": unknown, "labels_dropped": dropped, "labels_copied": copies}
        return {name: {split: counter[split] for split in SPLITS} for name, counter in names.items()}
