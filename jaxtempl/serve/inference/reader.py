"""Messages in, the window's ids out: training's own window, but only what can be in it is tokenized. No JAX."""

import functools
from collections.abc import Sequence

from jaxtempl.text import formats
from jaxtempl.text import window as text_window
from jaxtempl.text.cases import Message
from jaxtempl.text.tokenizer import Tokenizer

# A case's messages come back with each later request, so what they encode to is remembered: some 400 cases of 20
# messages. Long ones are not, or those who send them would fill the memory.
REMEMBERED, SHORT = 8192, 1000  # messages, and characters of one


class Reader:
    """Makes windows.

    Args:
        tokenizer: the model's.
        window: most tokens that it reads, special ones among them.
        role_tags: whether it reads the phase-1 tags.
    """

    def __init__(self, tokenizer: Tokenizer, window: int, role_tags: bool) -> None:
        self._window, self._role_tags = window - tokenizer.overhead, role_tags
        self._begin, self._end = tokenizer.begin, tokenizer.end
        self._encode = lambda piece: tokenizer.encode([piece])[
            0
        ]  # of nothing of self, which then goes with its last user
        self._remembered = functools.lru_cache(REMEMBERED)(self._encode)

    def read(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """Ids of the window of `messages`, oldest first, and how many older messages it leaves out.

        Messages are tokenized from the newest on until they no longer fit; older ones cannot be in the window.
        """
        encoded, total = list[list[int]](), 0
        for piece in reversed(formats.pieces(messages, self._role_tags)):
            encoded.append(self._remembered(piece) if len(piece) <= SHORT else self._encode(piece))
            total += len(encoded[-1])
            if total > self._window:
                break
        ids = text_window.window(encoded[::-1], self._window)
        return [*self._begin, *ids, *self._end], len(messages) - _kept(encoded, len(ids))


def _kept(newest_first: Sequence[Sequence[int]], left: int) -> int:
    """How many messages a window of `left` ids is of."""
    kept = 0
    while left > 0:
        left -= len(newest_first[kept])
        kept += 1
    return kept
