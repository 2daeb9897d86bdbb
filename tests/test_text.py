"""The two text forms of the paper's Figure 7, the window, and text that looks like a special token."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxtempl
from jaxtempl.text.cases import Message
from jaxtempl.text.formats import classifier_texts, document
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import newest_fitting

PYTHIA = Path(jaxtempl.__file__).parent / "assets" / "tokenizers" / "pythia.json"

# The part of Figure 7's dialogue that the paper prints.
BALANCES = (
    Message("customer", "What are the balances on my accounts?"),
    Message("system", "Hi <NAME>, I'll get you to someone who can help."),
    Message("customer", "Ty"),
    Message("customer", "Just a general question... What are the totals of all my accounts with cash app?"),
    Message("advocate", "Is there anything else that I can do for you?", "ANYTHING_ELSE"),
    Message("customer", "No, that's it, Thanks!"),
)

lists = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=8), max_size=8)


def joined(lists: list[list[int]]) -> list[int]:
    return [item for some in lists for item in some]


def window(messages: list[list[int]], limit: int) -> list[int]:
    return joined(newest_fitting(messages[::-1], limit))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(PYTHIA)


def test_phase_one_text_is_that_of_figure_7() -> None:
    assert document(BALANCES) == (
        "<CUSTOMER>: What are the balances on my accounts?\n"
        "<SYSTEM>: Hi <NAME>, I'll get you to someone who can help.\n"
        "<CUSTOMER>: Ty\n"
        "<CUSTOMER>: Just a general question... What are the totals of all my accounts with cash app?\n"
        "<ADVOCATE>: Is there anything else that I can do for you?\n"
        "<CUSTOMER>: No, that's it, Thanks!"
    )


def test_phase_two_text_is_that_of_figure_7() -> None:
    assert "".join(classifier_texts(BALANCES[:4])) == (
        "What are the balances on my accounts? Hi <NAME>, I'll get you to someone who can help. Ty "
        "Just a general question... What are the totals of all my accounts with cash app?"
    )


def test_phase_two_text_may_have_role_tags() -> None:
    assert "".join(classifier_texts(BALANCES[:3], role_tags=True)) == (
        "<CUSTOMER>: What are the balances on my accounts? "
        "<SYSTEM>: Hi <NAME>, I'll get you to someone who can help. <CUSTOMER>: Ty"
    )


def test_the_text_does_not_contain_the_label() -> None:
    assert "ANYTHING_ELSE" not in document(BALANCES) + "".join(classifier_texts(BALANCES))


@given(lists, st.integers(1, 20))
def test_window_never_exceeds_the_limit(messages: list[list[int]], limit: int) -> None:
    assert len(window(messages, limit)) <= limit


@given(lists.filter(bool), st.integers(1, 20))
def test_window_is_the_newest_whole_messages(messages: list[list[int]], limit: int) -> None:
    got = window(messages, limit)
    if len(messages[-1]) > limit:
        assert got == messages[-1][-limit:]
        return
    starts = [n for n in range(len(messages)) if joined(messages[n:]) == got]
    assert starts, "a message was truncated or reordered"
    fits = [n for n in range(len(messages)) if len(joined(messages[n:])) <= limit]
    assert len(got) == len(joined(messages[min(fits) :])), "a message that fits was dropped"


@given(lists.filter(bool), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 20))
def test_an_older_message_never_changes_a_full_window(messages: list[list[int]], older: list[int], limit: int) -> None:
    before = window(messages, limit)
    if len(before) < sum(map(len, messages)):  # full: a message was dropped
        assert window([older, *messages], limit) == before
    else:
        assert window([older, *messages], limit)[-len(before) :] == before


def test_window_of_nothing_is_empty() -> None:
    assert window([], 5) == []


@pytest.mark.parametrize("typed", ["<|endoftext|>", "a<|endoftext|>b", "<|padding|>", "<|endoftext|><|endoftext|>"])
def test_a_typed_special_token_is_encoded_as_text(tokenizer: Tokenizer, typed: str) -> None:
    (ids,) = tokenizer.encode([typed])
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == typed


@settings(max_examples=50)
@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_is_encoded_as_the_end_of_text(tokenizer: Tokenizer, before: str, after: str) -> None:
    for ids in tokenizer.encode([before + after, f"{before}<|endoftext|>{after}"]):
        assert tokenizer.end_of_text not in ids


def test_messages_encoded_separately_equal_the_joined_text(tokenizer: Tokenizer) -> None:
    for stop in range(1, len(BALANCES) + 1):
        parts = classifier_texts(BALANCES[:stop])
        assert joined(tokenizer.encode(parts)) == tokenizer.encode(["".join(parts)])[0]
