"""The window holds the newest whole messages, and tokenizes only messages that can fit."""

import gc
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ASSETS

from jaxtempl.config import sizes
from jaxtempl.errors import UserError
from jaxtempl.text import formats
from jaxtempl.text.cases import Message
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window, bucket_of, newest_fitting, pad_rows

TOKENIZER = Tokenizer(ASSETS / "nano" / "tokenizer.json")
MESSAGES = st.builds(
    Message, st.sampled_from(["customer", "system", "advocate"]), st.text(min_size=1, max_size=60).filter(str.strip)
)


@settings(max_examples=150)
@given(messages=st.lists(MESSAGES, min_size=1, max_size=40), window=st.integers(1, 80), role_tags=st.booleans())
def test_a_context_is_its_newest_whole_messages(messages: list[Message], window: int, role_tags: bool) -> None:
    whole = TOKENIZER.encode(formats.classifier_texts(messages, role_tags))
    ids, dropped = Window(TOKENIZER, window, role_tags).encode(messages)
    assert ids == [i for message in newest_fitting(whole[::-1], window) for i in message]
    kept = whole[dropped:]
    assert ids == [i for message in kept for i in message][-window:]
    assert dropped == len(messages) - 1 or sum(map(len, kept)) <= window


def test_messages_that_cannot_fit_are_not_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        counted.append(len(texts))
        return before(tokenizer, texts)

    before = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", encode)
    messages = [Message("customer", f"message number {i}") for i in range(1000)]
    ids, dropped = Window(TOKENIZER, 64).encode(messages)
    assert 0 < len(ids) <= 64
    assert dropped > 900
    assert sum(counted) <= 64


def test_encodings_are_cached_except_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []

    def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        counted.extend(texts)
        return before(tokenizer, texts)

    before = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", encode)
    window, long = Window(TOKENIZER, 512), Message("customer", "word " * 300)
    messages = [Message("customer", "one"), long, Message("customer", "two")]
    first = window.encode(messages)
    counted.clear()
    assert window.encode(messages) == first
    assert counted == [" " + long.text]
    counted.clear()
    window.encode([*messages, Message("advocate", "three")])
    assert counted == [" three", " " + long.text]


def test_a_window_is_freed_with_its_last_user_and_frees_its_tokenizer() -> None:
    """Otherwise a server that reloads would keep each window until the next garbage collection."""
    tokenizer = Tokenizer(ASSETS / "nano" / "tokenizer.json")
    window = Window(tokenizer, 64)
    window.encode([Message("customer", "hi")])
    kept = weakref.ref(tokenizer)
    gc.disable()
    try:
        del window, tokenizer
        assert kept() is None
    finally:
        gc.enable()


def test_special_tokens_that_leave_no_room_are_rejected() -> None:
    with pytest.raises(UserError, match=r"a window of 2 tokens has no room for text next to .* 2 special tokens"):
        Window(Tokenizer(sizes.tokenizer_path("bert-tiny")), 2)


def test_rows_are_padded_on_the_right() -> None:
    ids, lengths = pad_rows([[5, 6], [7]], 3, count=3)
    np.testing.assert_array_equal(ids, [[5, 6, 0], [7, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(lengths, [2, 1, 0])
    assert [bucket_of(length, (4, 8)) for length in (1, 4, 5, 8)] == [4, 4, 8, 8]
