"""Suggest the templates that an advocate most likely wants next.

Dims: S slots.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxtempl.bundle.bundle import Bundle
from jaxtempl.errors import UserError
from jaxtempl.serve.inference import backends
from jaxtempl.serve.inference.ranking import Ranker, Suggestion
from jaxtempl.text.cases import KnownValues, Message
from jaxtempl.text.window import NOTHING_KNOWN, Window


class Suggestions(NamedTuple):
    """Suggestions for a context.

    Attributes:
        suggestions: best first.
        tokens: number of tokens of the window.
        dropped_messages: number of messages older than the window.
    """

    suggestions: list[Suggestion]
    tokens: int
    dropped_messages: int


@dataclasses.dataclass(frozen=True)
class Suggester:
    """A classifier, its window and its ranker.

    Attributes:
        score: ids of one window -> logits [S]; slots beyond the templates are padding.
        window: encodes messages to ids.
        ranker: turns logits into suggestions.
    """

    score: Callable[[Sequence[int]], Float[np.ndarray, " S"]]
    window: Window
    ranker: Ranker

    def suggest(self, messages: Sequence[Message], k: int, known_values: KnownValues = NOTHING_KNOWN) -> Suggestions:
        """Return the k active templates most likely to follow `messages`, which are oldest first."""
        context = self.window.encode(messages, known_values)
        best = self.ranker.best(self.score(context.ids), k)
        return Suggestions(best, len(context.ids), context.dropped_messages)


def bundle_suggester(bundle: Bundle) -> Suggester:
    """Return a suggester with a bundle's TensorRT engine on this machine's GPU, or its graph in ONNX Runtime.

    Raises:
        UserError: the bundle is a language model, its engine is for another machine, or all its templates are retired.
    """
    check_head(bundle)
    network = backends.load_network(bundle)

    def score(ids: Sequence[int]) -> Float[np.ndarray, " S"]:
        return network(np.array([ids], np.int32), np.array([len(ids)], np.int32))[0]

    return Suggester(score, bundle.window, ranker_of(bundle))


def check_head(bundle: Bundle) -> None:
    """Raise UserError if a bundle is a language model, which has no templates."""
    if bundle.manifest["head"] != "template":
        raise UserError(f"{bundle.folder} is a language model, which knows no templates; name one with a template head")


def ranker_of(bundle: Bundle) -> Ranker:
    """Return the ranker of the bundle's templates; raises UserError if all are retired."""
    return Ranker(str(bundle.folder), bundle.templates, bundle.manifest["temperature"])
