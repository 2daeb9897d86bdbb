"""Messages in, the templates that an advocate most likely wants next out; whatever scores the window.

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
from jaxtempl.text.cases import Message
from jaxtempl.text.window import Window


class Suggestions(NamedTuple):
    """What is suggested for a context.

    Attributes:
        suggestions: best first.
        tokens: of the window that was read.
        dropped_messages: messages older than the window.
    """

    suggestions: list[Suggestion]
    tokens: int
    dropped_messages: int


@dataclasses.dataclass(frozen=True)
class Suggester:
    """A classifier with all that turns messages into its input and its logits into suggestions.

    Attributes:
        score: the ids of one window -> logits [S]; slots beyond the templates are padding.
        window: messages to ids.
        ranker: logits to templates.
    """

    score: Callable[[Sequence[int]], Float[np.ndarray, " S"]]
    window: Window
    ranker: Ranker

    def suggest(self, messages: Sequence[Message], k: int) -> Suggestions:
        """The k templates most likely to come after `messages`, oldest first; retired ones are left out."""
        ids, dropped = self.window.encode(messages)
        return Suggestions(self.ranker.best(self.score(ids), k), len(ids), dropped)


def bundle_suggester(bundle: Bundle) -> Suggester:
    """Suggests with a bundle's network: its TensorRT engine on this machine's GPU, or its graph in ONNX Runtime.

    Raises:
        UserError: the bundle is a language model, which knows no templates, its engine is not for this machine, or all
            its templates are retired.
    """
    check_head(bundle)
    network = backends.load_network(bundle)

    def score(ids: Sequence[int]) -> Float[np.ndarray, " S"]:
        return network(np.array([ids], np.int32), np.array([len(ids)], np.int32))[0]

    return Suggester(score, bundle.window, ranker_of(bundle))


def check_head(bundle: Bundle) -> None:
    """Raises UserError where a bundle is a language model, which knows no templates."""
    if bundle.manifest["head"] != "template":
        raise UserError(f"{bundle.folder} is a language model, which knows no templates; name one with a template head")


def ranker_of(bundle: Bundle) -> Ranker:
    """Ranks the bundle's templates; raises UserError where all are retired."""
    return Ranker(str(bundle.folder), bundle.templates, bundle.manifest["temperature"])
