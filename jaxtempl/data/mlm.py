"""Rows for masked language modelling: which tokens are hidden, and behind what (Devlin et al., 2018, section 3.1).

15 % of a row's tokens are to be told: 80 % of these are hidden behind [MASK], 10 % behind a random token, and 10 % are
left as they are. Special tokens are never among them. The draw is a function of a generator that the caller seeds by
step, so data stays a function of the step.

Dims: L length, M places to be told.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32, Integer, Shaped

from jaxtempl.errors import UserError
from jaxtempl.text.tokenizer import Tokenizer

MASKED_SHARE = 0.15
MASKED, RANDOM = 0.8, 0.1  # of these; the rest are left as they are

Row = Mapping[str, Shaped[np.ndarray, "..."]]


class Masker:
    """Makes rows of one tokenizer.

    Raises:
        UserError: it has no token to mask with.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.mask is None or not tokenizer.begin:
            raise UserError("the tokenizer has no [MASK] and [CLS]; masked language modelling needs one of BERT")
        self._begin, self._mask = tokenizer.begin[0], tokenizer.mask
        self._special = np.array(sorted(tokenizer.special))
        self._ordinary = np.setdiff1d(np.arange(tokenizer.vocabulary), self._special)

    def __call__(self, row: Row, generator: np.random.Generator) -> dict[str, Integer[np.ndarray, "..."]]:
        """A packed row behind [CLS], which takes the place of its last token, with some of it hidden.

        Args:
            row: `tokens` [L] and `segments` [L], 0 where it is padded.
            generator: of the draw.

        Returns:
            `tokens` [L] as the model reads them, `segments` [L], `places` [M] of what is to be told in order, their
            `targets` [M], and `weights` [M], 0 where the row has fewer than M to tell.
        """
        tokens = np.concatenate([[self._begin], row["tokens"][:-1]]).astype(np.int32)
        segments = np.concatenate([row["segments"][:1], row["segments"][:-1]]).astype(np.int32)
        places, weights = self._places(tokens, segments, generator)
        targets = tokens[places]
        tokens[places] = np.where(weights > 0, self._hidden(targets, generator), targets)
        return {"tokens": tokens, "segments": segments, "positions": places, "targets": targets, "weights": weights}

    def _places(
        self, tokens: Int32[np.ndarray, " L"], segments: Int32[np.ndarray, " L"], generator: np.random.Generator
    ) -> tuple[Int32[np.ndarray, " M"], Int32[np.ndarray, " M"]]:
        """Of every row as many, so that all have one shape; those of a padded one that are too many weigh nothing."""
        most = masked_count(len(tokens))
        candidates = np.flatnonzero((segments > 0) & ~np.isin(tokens, self._special))
        wanted = min(max(round(MASKED_SHARE * len(candidates)), 1), len(candidates), most)
        places = np.zeros(most, np.int32)
        places[:wanted] = np.sort(generator.choice(candidates, wanted, replace=False)) if wanted else 0
        return places, (np.arange(most) < wanted).astype(np.int32)

    def _hidden(self, tokens: Int32[np.ndarray, " M"], generator: np.random.Generator) -> Int32[np.ndarray, " M"]:
        """What is read in their place."""
        drawn = generator.random(len(tokens))
        other = generator.choice(self._ordinary, len(tokens)).astype(np.int32)
        return np.where(drawn < MASKED, self._mask, np.where(drawn < MASKED + RANDOM, other, tokens)).astype(np.int32)


def masked_count(length: int) -> int:
    """M: places of a row of so many tokens."""
    return max(round(MASKED_SHARE * length), 1)
