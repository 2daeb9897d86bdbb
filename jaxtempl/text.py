"""The two text forms of the paper's Figure 7, and the window of whole messages (training and serving).

Phase 1 (adapt) reads a case as `<CUSTOMER>: text` lines joined by one newline. Phase 2 (finetune, evaluate,
serve) reads the texts alone, one space between them, as token lists of whole messages. Tags are plain text
under the unmodified tokenizer (paper section 4.2).
"""

from collections.abc import Sequence

from jaxtempl.cases import Message

TAGS = {"customer": "<CUSTOMER>: ", "system": "<SYSTEM>: ", "advocate": "<ADVOCATE>: "}
WINDOW = 512  # tokens; paper section 4.3
LENGTHS = (64, 128, 256, 512)  # buckets of a context; a window longer than the last is its own bucket


def document(messages: Sequence[Message]) -> str:
    """Phase 1: the whole case as tagged lines (paper Figure 7, "Pre-training Sample")."""
    return "\n".join(TAGS[message.role] + message.text for message in messages)


def pieces(messages: Sequence[Message], role_tags: bool = False) -> list[str]:
    """Phase 2: the texts to encode one by one; each later one starts with the space that joins it.

    Args:
        messages: the context, oldest first.
        role_tags: keep the phase-1 tags (an ablation; the paper leaves them out).
    """
    texts = [TAGS[m.role] + m.text if role_tags else m.text for m in messages]
    return [text if i == 0 else " " + text for i, text in enumerate(texts)]


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
