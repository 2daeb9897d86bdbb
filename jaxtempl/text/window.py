"""The window: the newest whole messages of a context that fit (paper section 4.3)."""

from collections.abc import Sequence

WINDOW = 512  # tokens; paper section 4.3
LENGTHS = (64, 128, 256, 512)  # buckets of a context; a window longer than the last is its own bucket


def window(messages: Sequence[Sequence[int]], limit: int = WINDOW) -> list[int]:
    """The newest whole messages that fit, oldest first, as one sequence of ids (paper section 4.3).

    A newest message longer than `limit` keeps its last `limit` ids; no other message is ever cut.

    Args:
        messages: ids of each message, oldest first.
        limit: greatest number of ids returned.
    """
    start, total = len(messages), 0
    while start > 0 and total + len(messages[start - 1]) <= limit:
        start -= 1
        total += len(messages[start])
    if start == len(messages) and messages:
        return list(messages[-1][-limit:])
    return [token for message in messages[start:] for token in message]


def buckets(limit: int) -> tuple[int, ...]:
    """Lengths that windows of at most `limit` tokens are padded to."""
    return (*(length for length in LENGTHS if length < limit), limit)
