"""The two text forms of the paper's Figure 7.

Phase 1 (adapt) reads a case as `<CUSTOMER>: text` lines joined by one newline. Phase 2 (finetune, evaluate, serve)
reads the texts alone, joined by one space. Labels without text are in neither form. Tags are plain text under the
unmodified tokenizer (paper section 4.2).
"""

from collections.abc import Sequence

from jaxtempl.text.cases import Message, with_text

TAGS = {"customer": "<CUSTOMER>: ", "system": "<SYSTEM>: ", "advocate": "<ADVOCATE>: "}


def document(messages: Sequence[Message]) -> str:
    """Return the phase-1 form: the whole case as tagged lines (paper Figure 7, "Pre-training Sample")."""
    return "\n".join(TAGS[message.role] + message.text for message in with_text(messages))


def classifier_texts(messages: Sequence[Message], role_tags: bool = False) -> list[str]:
    """Return the phase-2 texts, to encode one by one; each later one starts with the space that joins it.

    Args:
        messages: the context, oldest first.
        role_tags: keep the phase-1 tags (an ablation; the paper leaves them out).
    """
    texts = [TAGS[m.role] + m.text if role_tags else m.text for m in with_text(messages)]
    return [text if i == 0 else " " + text for i, text in enumerate(texts)]
