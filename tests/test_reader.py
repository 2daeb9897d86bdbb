"""The server's window is training's, though only what can be in it is tokenized."""

import gc
import weakref
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ASSETS

from jaxtempl.serve.inference.reader import Reader
from jaxtempl.text import formats
from jaxtempl.text import window as text_window
from jaxtempl.text.cases import Message
from jaxtempl.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(ASSETS / "nano" / "tokenizer.json")
SAID = st.builds(
    Message, st.sampled_from(["customer", "system", "advocate"]), st.text(min_size=1, max_size=60).filter(str.strip)
)


@settings(max_examples=150, deadline=None)
@given(messages=st.lists(SAID, min_size=1, max_size=40), window=st.integers(1, 80), role_tags=st.booleans())
def test_the_window_is_trainings(messages: list[Message], window: int, role_tags: bool) -> None:
    whole = TOKENIZER.encode(formats.pieces(messages, role_tags))
    ids, dropped = Reader(TOKENIZER, window, role_tags).read(messages)
    assert ids == text_window.window(whole, window)
    kept = whole[dropped:]
    assert ids == [i for piece in kept for i in piece][-window:]
    assert dropped == len(messages) - 1 or sum(map(len, kept)) <= window


def test_what_cannot_be_in_the_window_is_not_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        counted.append(len(texts))
        return before(tokenizer, texts)

    before = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", encode)
    messages = [Message("customer", f"message number {i}") for i in range(1000)]
    ids, dropped = Reader(TOKENIZER, 64, False).read(messages)
    assert 0 < len(ids) <= 64
    assert dropped > 900
    assert sum(counted) <= 64


def test_a_case_s_messages_are_remembered_and_long_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []

    def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        counted.extend(texts)
        return before(tokenizer, texts)

    before = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", encode)
    reader, long = Reader(TOKENIZER, 512, False), Message("customer", "word " * 300)
    messages = [Message("customer", "one"), long, Message("customer", "two")]
    first = reader.read(messages)
    counted.clear()
    assert reader.read(messages) == first
    assert counted == [" " + long.text]
    counted.clear()
    reader.read([*messages, Message("advocate", "three")])
    assert counted == [" three", " " + long.text]


def test_a_reader_goes_with_its_last_user_and_takes_its_tokenizer_along() -> None:
    """A server that reloads would else keep each until the collector comes by."""
    tokenizer = Tokenizer(ASSETS / "nano" / "tokenizer.json")
    reader = Reader(tokenizer, 64, False)
    reader.read([Message("customer", "hi")])
    kept = weakref.ref(tokenizer)
    gc.disable()
    try:
        del reader, tokenizer
        assert kept() is None
    finally:
        gc.enable()
