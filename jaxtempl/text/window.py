"""The window of a context: the newest whole messages that fit in the model's input (paper section 4.3).

Training, evaluation, conversion and serving make their token ids here, so that they read the same text. No JAX.

Dims: B rows, L length.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from jaxtempl.errors import UserError
from jaxtempl.text import formats
from jaxtempl.text.cases import KnownValues, Message, Redact
from jaxtempl.text.tokenizer import Tokenizer

WINDOW = 512  # tokens; paper section 4.3
LENGTHS = (64, 128, 256, 512)  # buckets of a context; a window longer than the last is its own bucket
# The default cache holds some 400 cases of 20 messages. Longer messages are not cached, so that no client can fill the
# memory of a server.
CACHED_MESSAGES, CACHED_CHARACTERS = 8192, 1000
NOTHING_KNOWN: KnownValues = {}


class EncodedContext(NamedTuple):
    """A context as the model reads it.

    Attributes:
        ids: token ids, special tokens included.
        dropped_messages: number of older messages that do not fit.
    """

    ids: list[int]
    dropped_messages: int


class Window:
    """Encodes the newest whole messages of a context that fit in a model's input.

    Messages are tokenized from the newest on, until one does not fit. A case's messages return with each later context,
    so their encodings are cached.

    Args:
        tokenizer: the model's tokenizer.
        limit: maximum number of tokens, special ones included.
        role_tags: keep the phase-1 tags (an ablation; the paper leaves them out).
        cached_messages: maximum number of cached encodings.
        redact: redacts a context before it is encoded, as its model's training data were redacted; None leaves it.

    Attributes:
        limit: maximum number of tokens, special ones included.
        role_tags: whether the phase-1 tags are kept.
        special_tokens: number of special tokens around the text.

    Raises:
        UserError: the special tokens leave no room for text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        limit: int = WINDOW,
        role_tags: bool = False,
        cached_messages: int = CACHED_MESSAGES,
        redact: Redact | None = None,
    ) -> None:
        self.limit, self.role_tags, self.special_tokens = limit, role_tags, tokenizer.overhead
        if limit <= tokenizer.overhead:
            raise UserError(
                f"a window of {limit} tokens has no room for text next to the tokenizer's {tokenizer.overhead} special "
                f"tokens; at least {tokenizer.overhead + 1} tokens are allowed: use a longer window"
            )
        self._redact = redact
        self._begin, self._end = tokenizer.begin, tokenizer.end
        # The cache must not refer to `self`: a cycle would keep a replaced model's tokenizer until the next collection.
        self._encode = lambda text: tokenizer.encode([text])[0]
        self._cached = functools.lru_cache(cached_messages)(self._encode)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that contexts are padded to."""
        return buckets(self.limit)

    def encode(self, messages: Sequence[Message], known_values: KnownValues = NOTHING_KNOWN) -> EncodedContext:
        """Return the ids of a context, between the model's special tokens, and the number of messages left out.

        Args:
            messages: the context, oldest first.
            known_values: values of the customer, for a model whose data were redacted.
        """
        texts = self._texts(messages, known_values)
        kept = self._newest(texts)
        ids = [token for message in kept for token in message]
        return EncodedContext([*self._begin, *ids, *self._end], len(texts) - len(kept))

    def newest(self, messages: Sequence[Message]) -> list[list[int]]:
        """Return the ids of each message in the window, oldest first, without special tokens."""
        return self._newest(self._texts(messages, NOTHING_KNOWN))

    def _texts(self, messages: Sequence[Message], known_values: KnownValues) -> list[str]:
        redacted = self._redact(messages, known_values) if self._redact else messages
        return formats.classifier_texts(redacted, self.role_tags)

    def _newest(self, texts: Sequence[str]) -> list[list[int]]:
        return newest_fitting(self._newest_first(texts), self.limit - self.special_tokens)

    def _newest_first(self, texts: Sequence[str]) -> Iterator[list[int]]:
        for text in reversed(texts):
            yield self._cached(text) if len(text) <= CACHED_CHARACTERS else self._encode(text)


def newest_fitting(newest_first: Iterable[list[int]], limit: int) -> list[list[int]]:
    """Return the newest whole messages that fit in `limit` ids, oldest first (paper section 4.3).

    A newest message longer than `limit` keeps its last `limit` ids; no other message is cut.

    Args:
        newest_first: ids of each message; read up to the first that does not fit.
        limit: maximum number of ids, at least 1.
    """
    kept, room = list[list[int]](), limit
    for ids in newest_first:
        if len(ids) > room:
            kept = kept or [ids[-limit:]]
            break
        kept.append(ids)
        room -= len(ids)
    return kept[::-1]


def buckets(limit: int) -> tuple[int, ...]:
    """Return the lengths that windows of at most `limit` tokens are padded to."""
    return (*(length for length in LENGTHS if length < limit), limit)


def bucket_of(length: int, buckets: Iterable[int]) -> int:
    """Return the first of the ascending bucket lengths that holds `length` tokens."""
    return next(bucket for bucket in buckets if length <= bucket)


def pad_rows(
    rows: Sequence[Sequence[int]], length: int, count: int | None = None
) -> tuple[Int32[np.ndarray, "B L"], Int32[np.ndarray, " B"]]:
    """Pad rows of ids on the right with zeros.

    Args:
        rows: token ids, at most `length` each.
        length: padded length.
        count: number of rows returned (default: those given); the rows added are empty.

    Returns:
        The padded ids and the number of real ids in each row.
    """
    count = len(rows) if count is None else count
    ids, lengths = np.zeros((count, length), np.int32), np.zeros(count, np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)], lengths[i] = row, len(row)
    return ids, lengths
