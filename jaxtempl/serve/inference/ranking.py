"""Rank templates by logits: allowed ones only, calibrated, best first, without near-duplicates. No JAX.

Dims: S slots.
"""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxtempl.errors import UserError
from jaxtempl.text.cases import Template
from jaxtempl.text.templates import listed_texts

# Words that do not change what a text says; no negation, number or noun is among them.
_FILLERS = "a an the i you we it its this that am m is s are re be will ll would d have ve has had to of and so please"
FILLERS = frozenset(_FILLERS.split())
SPELLINGS = {"’": "'", "cannot": "can not", "can't": "can not", "won't": "will not", "n't": " not"}  # noqa: RUF001


class Suggestion(NamedTuple):
    """One template with its probability among those that may be suggested."""

    template: str
    text: str
    probability: float


class Ranker:
    """Ranks the templates of one model.

    Args:
        name: name of the model in errors.
        templates: the classes by slot; slots of the head beyond them are padding.
        temperature: divisor of the logits.

    Raises:
        UserError: all templates are retired.
    """

    def __init__(self, name: str, templates: Sequence[Template], temperature: float) -> None:
        self._templates, self._temperature = templates, temperature
        self._active = np.array([template.active for template in templates], bool)
        if not self._active.any():
            raise UserError(f"all templates of {name} are retired; set one active in its templates.json")
        self._slots = {template.id: i for i, template in enumerate(templates)}
        self._words = [comparable_words(template.text) or template.id for template in templates]

    @property
    def active(self) -> int:
        """Number of templates that may be suggested."""
        return int(self._active.sum())

    @property
    def listed_texts(self) -> dict[str, str]:
        """Text by id of the templates that the user's file lists."""
        return listed_texts(self._templates)

    def best(self, logits: Float[np.ndarray, " S"], k: int, allowed: Collection[str] | None = None) -> list[Suggestion]:
        """Return the k most likely templates, best first, or fewer if there are no more.

        Probabilities are over the active and allowed templates. Of templates with nearly equal texts only the likeliest
        is returned, with its probability.

        Args:
            logits: logits of one context, by slot.
            k: maximum number of templates.
            allowed: ids of templates that may be suggested (default: all); unknown ids are ignored.
        """
        candidates = self._active if allowed is None else self._active & self._mask(allowed)
        logits = logits[: len(candidates)]
        probability = probabilities(logits, candidates, self._temperature)
        # By logits: a very unlikely candidate's probability underflows to 0, which is that of a template not allowed.
        order = np.argsort(np.where(candidates, -logits, np.inf), kind="stable")
        chosen: dict[object, int] = {}
        for slot in order[: candidates.sum()].tolist():
            if len(chosen) == k:
                break
            chosen.setdefault(self._words[slot], slot)
        return [
            Suggestion(self._templates[i].id, self._templates[i].text, float(probability[i])) for i in chosen.values()
        ]

    def _mask(self, allowed: Collection[str]) -> Bool[np.ndarray, " S"]:
        mask = np.zeros(len(self._templates), bool)
        mask[[self._slots[name] for name in map(str.strip, allowed) if name in self._slots]] = True
        return mask


def probabilities(
    logits: Float[np.ndarray, " S"], candidates: Bool[np.ndarray, " S"], temperature: float
) -> Float[np.ndarray, " S"]:
    """Return the softmax over the candidates; 0 for the others."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(
        scaled - scaled.max(initial=-np.inf, where=candidates), where=candidates, out=np.zeros_like(scaled)
    )
    return weights / (weights.sum() or 1.0)


def comparable_words(text: str) -> tuple[str, ...]:
    """Return the words of a text without case, punctuation and fillers; equal for near-duplicates."""
    normalized = text.casefold()
    for short, long in SPELLINGS.items():
        normalized = normalized.replace(short, long)
    found = re.findall(r"\w+", normalized)
    return tuple(word for word in found if word not in FILLERS) or tuple(found)
