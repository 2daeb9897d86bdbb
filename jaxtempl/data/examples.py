"""Labelled contexts of a split as arrays beside their cases, labelled with a run's slots.

Dims: N contexts.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from jaxtempl.data.dataset import Dataset
from jaxtempl.text.cases import Case, Template


@dataclasses.dataclass(frozen=True)
class Examples:
    """Labelled contexts; a slot of -1 is a template that is none of the run's classes.

    Attributes:
        cases: those that have a label.
        case: index into `cases`, context by context.
        message: index of the labelled message; the context is the messages before it.
        slot: the label.
        previous: the last template in the context; -1 also where there is none yet.
    """

    cases: Sequence[Case]
    case: Int[np.ndarray, " N"]
    message: Int[np.ndarray, " N"]
    slot: Int[np.ndarray, " N"]
    previous: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.slot)

    def label(self, index: int) -> str:
        """Template id of a context's label."""
        return str(self.cases[self.case[index]].messages[self.message[index]].template)


def slots_by_id(templates: Sequence[Template]) -> dict[str, int]:
    """Slot of each template id; slots of a run and a dataset are matched through ids."""
    return {template.id: template.slot for template in templates}


def read(
    dataset: Dataset, split: str, slots: Mapping[str, int], chosen: Int[np.ndarray, " chosen"] | None = None
) -> Examples:
    """The labelled contexts of a split in order, or the chosen ones of them."""
    labels = dataset.labels(split)
    which = np.arange(len(labels.slot)) if chosen is None else chosen
    numbers, place = np.unique(labels.case[which], return_inverse=True)
    stored = dataset.cases(split)
    cases = [stored[int(number)] for number in numbers]
    message = labels.message[which]
    own = [[slots.get(str(m.template), -1) if m.template else -1 for m in case.messages] for case in cases]
    before = [list(_last(case, row)) for case, row in zip(cases, own, strict=True)]
    pairs = list(zip(place.tolist(), message.tolist(), strict=True))
    slot, previous = (np.array([table[c][m] for c, m in pairs], np.int64) for table in (own, before))
    return Examples(cases, place, message, slot, previous)


def _last(case: Case, slots: Sequence[int]) -> Iterator[int]:
    """For each message, the slot of the last template before it."""
    last = -1
    for message, slot in zip(case.messages, slots, strict=True):
        yield last
        last = slot if message.template else last


def known(examples: Examples) -> Examples:
    """Those whose label is a class."""
    keep = examples.slot >= 0
    columns = (examples.case, examples.message, examples.slot, examples.previous)
    return Examples(examples.cases, *(column[keep] for column in columns))
