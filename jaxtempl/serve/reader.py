"""Messages in, the window's ids out: training's own window, but only what can be in it is tokenized. No JAX."""

import dataclasses
from collections.abc import Sequence

from jaxtempl import text
from jaxtempl.cases import Message
from jaxtempl.tokenizer import Tokenizer

FIRST = 8  # messages that are tokenized at once; twice as many each time that the window is not yet full


@dataclasses.dataclass(frozen=True)
class Reader:
    """Makes windows.

    Attributes:
        tokenizer: the model's.
        window: most tokens that it reads.
        role_tags: whether it reads the phase-1 tags.
    """

    tokenizer: Tokenizer
    window: int
    role_tags: bool

    def read(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """Ids of the window of `messages`, oldest first, and how many older messages it leaves out.

        The newest messages are tokenized until they no longer fit; those before them cannot be in the window.
        """
        pieces, encoded = text.pieces(messages, self.role_tags), list[list[int]]()
        count, total = FIRST, 0
        while len(encoded) < len(pieces) and total <= self.window:
            end = len(pieces) - len(encoded)
            encoded = self.tokenizer.encode(pieces[max(end - count, 0) : end]) + encoded
            count, total = 2 * count, sum(map(len, encoded))
        ids = text.window(encoded, self.window)
        left, kept = len(ids), 0
        while left > 0:
            kept += 1
            left -= len(encoded[-kept])
        return ids, len(messages) - kept
