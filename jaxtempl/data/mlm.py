"""Masked language modelling: the tokens of a row that are predicted, and what hides them (Devlin et al., 2018, 3.1).

15 % of a row's tokens are predicted: 80 % of these are replaced by [MASK], 10 % by a random token, and 10 % are
unchanged. Special tokens are never predicted. The caller seeds the generator by step, so that a batch stays a function
of the step.

Dims: L length, M predicted positions.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32, Integer, Shaped

from jaxtempl.errors import UserError
from jaxtempl.text.tokenizer import Tokenizer

MASKED_SHARE = 0.15  # of a row's tokens
MASK_TOKEN, RANDOM_TOKEN = 0.8, 0.1  # shares of the predicted tokens; the others are unchanged

MaskedRow = Mapping[str, Integer[np.ndarray, "..."]]


class Masker:
    """Masks packed rows of one tokenizer.

    Raises:
        UserError: the tokenizer has no [MASK] or no [CLS].
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.mask is None or not tokenizer.begin:
            raise UserError("the tokenizer has no [MASK] and [CLS]; use a BERT's tokenizer")
        self._begin, self._mask = tokenizer.begin[0], tokenizer.mask
        self._special = np.array(sorted(tokenizer.special))
        self._ordinary = np.array(tokenizer.text_ids)

    def __call__(self, row: Mapping[str, Shaped[np.ndarray, "..."]], generator: np.random.Generator) -> MaskedRow:
        """Put [CLS] before a packed row, drop its last token, and mask some of it.

        Args:
            row: `tokens` [L] and `segments` [L], 0 where the row is padded.
            generator: source of the draw.

        Returns:
            `tokens` [L] and `segments` [L] as the model reads them, ascending `positions` [M] that are predicted, their
            `targets` [M], and `weights` [M], 0 where the row has fewer than M tokens to predict.
        """
        tokens = np.concatenate([[self._begin], row["tokens"][:-1]]).astype(np.int32)
        segments = np.concatenate([row["segments"][:1], row["segments"][:-1]]).astype(np.int32)
        positions, weights = self._draw_positions(tokens, segments, generator)
        targets = tokens[positions]
        tokens[positions] = np.where(weights > 0, self._replace(targets, generator), targets)
        return {"tokens": tokens, "segments": segments, "positions": positions, "targets": targets, "weights": weights}

    def _draw_positions(
        self, tokens: Int32[np.ndarray, " L"], segments: Int32[np.ndarray, " L"], generator: np.random.Generator
    ) -> tuple[Int32[np.ndarray, " M"], Int32[np.ndarray, " M"]]:
        """Return M positions for every row, so that all have one shape, and their weights: 0 for those in excess."""
        size = masked_count(len(tokens))
        candidates = np.flatnonzero((segments > 0) & ~np.isin(tokens, self._special))
        count = min(max(round(MASKED_SHARE * len(candidates)), 1), len(candidates), size)
        positions = np.zeros(size, np.int32)
        positions[:count] = np.sort(generator.choice(candidates, count, replace=False)) if count else 0
        return positions, (np.arange(size) < count).astype(np.int32)

    def _replace(self, tokens: Int32[np.ndarray, " M"], generator: np.random.Generator) -> Int32[np.ndarray, " M"]:
        drawn = generator.random(len(tokens))
        random = generator.choice(self._ordinary, len(tokens)).astype(np.int32)
        unmasked = np.where(drawn < MASK_TOKEN + RANDOM_TOKEN, random, tokens)
        return np.where(drawn < MASK_TOKEN, self._mask, unmasked).astype(np.int32)


def masked_count(length: int) -> int:
    """Return M, the number of predicted positions in a row of `length` tokens."""
    return max(round(MASKED_SHARE * length), 1)
