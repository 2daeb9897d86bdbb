"""Messages in, the templates that an advocate most likely wants next out; whatever scores the window.

Dims: S slots.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxtempl import text
from jaxtempl.bundle import ONNX, Bundle
from jaxtempl.cases import Message, Template
from jaxtempl.errors import UserError
from jaxtempl.serve import engine
from jaxtempl.serve.backends import OnnxRuntime
from jaxtempl.serve.engine import Machine
from jaxtempl.tokenizer import Tokenizer


class Suggestion(NamedTuple):
    """One template with its probability among the active ones."""

    template: str
    text: str
    probability: float


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
        name: of what suggests, for errors.
        score: the ids of one window -> logits [S]; slots beyond the templates are padding.
        tokenizer: the model's.
        templates: the classes by slot.
        window: most tokens that it reads.
        role_tags: whether it reads the phase-1 tags.
        temperature: that the logits are divided by.
    """

    name: str
    score: Callable[[Sequence[int]], Float[np.ndarray, " S"]]
    tokenizer: Tokenizer
    templates: Sequence[Template]
    window: int
    role_tags: bool
    temperature: float

    def suggest(self, messages: Sequence[Message], k: int) -> Suggestions:
        """The k templates most likely to come after `messages`, oldest first; retired ones are left out.

        Raises:
            UserError: all templates are retired.
        """
        active = np.array([template.active for template in self.templates], bool)
        if not active.any():
            raise UserError(f"all templates of {self.name} are retired; set one active in its templates.json")
        ids, dropped = self.read(messages)
        probability = probabilities(self.score(ids)[: len(active)], active, self.temperature)
        best = np.argsort(-probability, kind="stable")[: min(k, int(active.sum()))]
        chosen = [Suggestion(self.templates[i].id, self.templates[i].text, float(probability[i])) for i in best]
        return Suggestions(chosen, len(ids), dropped)

    def read(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """Ids of the window, and how many older messages it leaves out."""
        pieces = self.tokenizer.encode(text.pieces(messages, self.role_tags))
        ids = text.window(pieces, self.window)
        left, kept = len(ids), 0
        while left > 0:
            kept += 1
            left -= len(pieces[-kept])
        return ids, len(messages) - kept


def probabilities(logits: Float[np.ndarray, " S"], active: np.ndarray, temperature: float) -> Float[np.ndarray, " S"]:
    """Softmax over the active slots; 0 for the others."""
    scaled = np.where(active, logits.astype(np.float64) / temperature, -np.inf)
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def of_bundle(bundle: Bundle) -> Suggester:
    """Suggests with a bundle's network: its TensorRT engine on this machine's GPU, or its graph in ONNX Runtime.

    Raises:
        UserError: the bundle is a language model, which knows no templates, or its engine is not for this machine.
    """
    facts = bundle.manifest
    if facts["head"] != "template":
        raise UserError(f"{bundle.folder} is a language model, which knows no templates; name one with a template head")
    network = OnnxRuntime(bundle.model) if bundle.model.name == ONNX else engine.load(bundle, Machine.here())

    def score(ids: Sequence[int]) -> Float[np.ndarray, " S"]:
        return network(np.array([ids], np.int32), np.array([len(ids)], np.int32))[0]

    window, tags, temperature = facts["window"], facts["role_tags"], facts["temperature"]
    return Suggester(str(bundle.folder), score, bundle.tokenizer, bundle.templates, window, tags, temperature)
