"""Labelled contexts of a dataset, made and tokenized when they are read."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from jaxtempl.data.dataset import Dataset, Labels
from jaxtempl.text import formats
from jaxtempl.text import window as text_window
from jaxtempl.text.cases import Case, Message
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import WINDOW


class Context(NamedTuple):
    """One labelled context, read: the window's ids and the slot to predict (-1: the template is no class)."""

    tokens: list[int]
    slot: int


class Contexts:
    """Labelled contexts of one split at random; made and tokenized when read.

    Args:
        dataset: where the cases and labels are.
        split: side of the dataset.
        tokenizer: the model's.
        limit: tokens of the window.
        role_tags: keep the phase-1 tags.
        chosen: indices of the labels to serve (default: all of the split).
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        tokenizer: Tokenizer,
        limit: int = WINDOW,
        role_tags: bool = False,
        chosen: Integer[np.ndarray, " n"] | None = None,
    ) -> None:
        self.cases = dataset.cases(split)
        labels = dataset.labels(split)
        self.labels = labels if chosen is None else Labels(*(column[chosen] for column in labels))
        self.limit = limit
        # A case's messages come back in the context of each of its labels, so what they encode to is remembered.
        self._encode = functools.lru_cache(2**16)(lambda piece: tokenizer.encode([piece])[0])
        self._pieces = functools.partial(formats.pieces, role_tags=role_tags)
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.labels.slot)

    def __getitem__(self, index: int) -> Context:
        case: Case = self.cases[int(self.labels.case[index])]
        return Context(self.window(case.messages[: self.labels.message[index]]), int(self.labels.slot[index]))

    def window(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the newest whole messages that fit, between the special tokens that the model wants."""
        ids = [self._encode(piece) for piece in self._pieces(messages)]
        own = self._tokenizer
        return [*own.begin, *text_window.window(ids, self.limit - own.overhead), *own.end]
