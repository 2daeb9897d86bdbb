"""The ranker turns logits into suggestions, and merges templates with near-identical texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from tiny import template

from jaxtempl.errors import UserError
from jaxtempl.serve.inference import ranking
from jaxtempl.serve.inference.ranking import Ranker
from jaxtempl.text.cases import Template

TEXTS = [
    "Thank you and goodbye.",
    "Thank you, goodbye!",
    "I'm sorry, but your booking request failed.",
    "I am sorry but your booking request has failed",
    "Your refund was approved.",
    "Your refund was declined.",
    "You can pay at 5pm.",
    "You can't pay at 5pm.",
    "You can pay at 6pm.",
    "🙂",
    "👍",
    "",
]


def made(*texts: str) -> list[Template]:
    return [template(slot, f"t{slot}", text=text) for slot, text in enumerate(texts)]


def names(found: list[ranking.Suggestion]) -> list[str]:
    return [each.template for each in found]


def test_the_likeliest_of_near_identical_texts_represents_all() -> None:
    ranker = Ranker("x", made(*TEXTS), 1.0)
    logits = np.arange(len(TEXTS), dtype=np.float32)
    found = names(ranker.best(logits, 12))
    assert found == ["t11", "t10", "t9", "t8", "t7", "t6", "t5", "t4", "t3", "t1"]
    assert names(ranker.best(logits, 2, allowed=["t0", "t1", "t2"])) == ["t2", "t1"]


def test_a_negation_a_number_or_another_word_makes_a_different_text() -> None:
    same = {frozenset(pair) for pair in [(0, 1), (2, 3)]}
    for i, one in enumerate(TEXTS[:9]):
        for j, other in enumerate(TEXTS[:9]):
            assert (ranking.comparable_words(one) == ranking.comparable_words(other)) == (
                i == j or frozenset((i, j)) in same
            ), (one, other)
    assert ranking.comparable_words("Do you have it?"), "a text that consists of filler words keeps them"
    assert (
        ranking.comparable_words("We cannot pay")
        == ranking.comparable_words("We can't pay")
        == ranking.comparable_words("we can not pay")
    )


@settings(max_examples=60)
@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=9, max_size=12),
    retired=st.sets(st.integers(0, 8), max_size=8),
    allowed=st.none() | st.sets(st.integers(0, 12)),
    temperature=st.floats(0.1, 10),
    k=st.integers(1, 12),
)
def test_probabilities_are_a_softmax_over_the_allowed_templates(
    logits: list[float], retired: set[int], allowed: set[int] | None, temperature: float, k: int
) -> None:
    templates = [template(i, f"t{i}", text=f"text{i}", active=i not in retired) for i in range(9)]
    may = [i for i in range(9) if i not in retired and (allowed is None or i in allowed)]
    values = np.array(logits, np.float32)
    found = Ranker("x", templates, temperature).best(values, k, None if allowed is None else {f"t{i}" for i in allowed})
    assert len(found) == min(k, len(may))
    expected = special.softmax(values[may].astype(np.float64) / temperature) if may else np.array([])
    assert [each.probability for each in found] == pytest.approx(sorted(expected, reverse=True)[:k])
    for each in found:
        slot = int(each.template[1:])
        assert each.probability == pytest.approx(expected[may.index(slot)])
        assert each.text == f"text{slot}"


def test_a_template_that_is_not_allowed_stays_out_where_an_allowed_one_has_probability_0() -> None:
    logits = np.array([0, 41, 0, 0, -41, 0], np.float32)
    found = Ranker("x", [template(i, f"t{i}") for i in range(6)], 0.1).best(logits, 3, {"t0", "t1", "t4"})
    assert names(found) == ["t1", "t0", "t4"]
    assert found[2].probability == 0


def test_a_model_of_retired_templates_is_refused() -> None:
    with pytest.raises(UserError, match="all templates of x are retired; set one active"):
        Ranker("x", [template(0, "a", active=False)], 1.0)


def test_padding_slots_are_never_suggested() -> None:
    found = Ranker("x", made("one", "two"), 1.0).best(np.array([0, 1, 99, 99], np.float32), 5)
    assert names(found) == ["t1", "t0"]
