"""Labelled contexts: what came before each reply that was sent from a template, and the template's slot.

Labels are columns in memory. Messages are read and tokenized when a context is.

Dims: N contexts.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer

from jaxtempl.data.dataset import Dataset
from jaxtempl.data.sampling import nested_subset
from jaxtempl.text.cases import Case, Message, Template
from jaxtempl.text.window import Window


class LabelledContext(NamedTuple):
    """One labelled context, encoded.

    Attributes:
        tokens: ids of the window.
        slot: slot to predict; -1 where the template is not a class.
    """

    tokens: list[int]
    slot: int


@dataclasses.dataclass(frozen=True)
class LabelledContexts:
    """Labelled contexts of one split, at random.

    Attributes:
        window: encodes a context for the model.
        slots: slot of each template id.
        cases: cases of the split.
        case: index into `cases` of each context.
        message: index of the labelled message; the context is the messages before it.
        slot: label of each context; -1 where the template is not a class.
    """

    window: Window
    slots: Mapping[str, int]
    cases: Sequence[Case]
    case: Integer[np.ndarray, " N"]
    message: Integer[np.ndarray, " N"]
    slot: Integer[np.ndarray, " N"]

    @classmethod
    def read(cls, dataset: Dataset, split: str, window: Window) -> "LabelledContexts":
        """Read the labels of a split, with the dataset's slots."""
        labels = dataset.labels(split)
        return cls(window, slots_by_id(dataset.templates), dataset.cases(split), *labels)

    def __len__(self) -> int:
        return len(self.slot)

    def __getitem__(self, index: int) -> LabelledContext:
        return LabelledContext(self.window.encode(self.messages(index)).ids, int(self.slot[index]))

    def messages(self, index: int) -> Sequence[Message]:
        """Return the messages before a label, oldest first."""
        return self.cases[int(self.case[index])].messages[: self.message[index]]

    def template(self, index: int) -> str:
        """Return the template id of a label."""
        return str(self.cases[int(self.case[index])].messages[self.message[index]].template)

    @functools.cached_property
    def previous(self) -> Int[np.ndarray, " N"]:
        """Slot of the last template in each context; -1 where there is none or it is not a class."""
        return np.array([_last_slot(self.messages(i), self.slots) for i in range(len(self))], np.int64)

    def take(self, indices: Integer[np.ndarray, " n"] | Bool[np.ndarray, " N"] | slice) -> "LabelledContexts":
        """Return the contexts at `indices` (or where a mask is true), in order."""
        columns = {name: getattr(self, name)[indices] for name in ("case", "message", "slot")}
        return dataclasses.replace(self, **columns)

    def known(self) -> "LabelledContexts":
        """Return the contexts whose template is a class."""
        return self.take(self.slot >= 0)

    def with_text(self) -> "LabelledContexts":
        """Return the contexts that have at least one message."""
        return self.take(self.message > 0)

    def sample(self, count: int | None, seed: int) -> "LabelledContexts":
        """Return `count` contexts (or all, where there are fewer) in a seeded random order; samples of a seed nest."""
        return self.take(nested_subset(len(self), count, seed))

    def relabel(self, slots: Mapping[str, int]) -> "LabelledContexts":
        """Return the same contexts with a model's slots, matched by template id; their cases are read into memory."""
        numbers, case = np.unique(self.case, return_inverse=True)
        held = dataclasses.replace(self, slots=slots, cases=[self.cases[int(i)] for i in numbers], case=case)
        slot = np.array([slots.get(held.template(i), -1) for i in range(len(held))], np.int64)
        return dataclasses.replace(held, slot=slot)


def _last_slot(messages: Sequence[Message], slots: Mapping[str, int]) -> int:
    last = next((message.template for message in reversed(messages) if message.template), None)
    return -1 if last is None else slots.get(last, -1)


def slots_by_id(templates: Sequence[Template]) -> dict[str, int]:
    """Return the slot of each template id; slots of a run and of a dataset are matched through ids."""
    return {template.id: template.slot for template in templates}
