import dataclasses

import numpy as np
import pytest

from jaxtempl.config.paths import ASSETS
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.evaluation import baselines, metrics
from jaxtempl.text.cases import Case, Message
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window

WISHES = ("refund my money", "block my card", "change the address", "raise my limit")


SLOTS = {f"t{slot}": slot for slot in range(6)} | {"a": 0, "b": 1}


def contexts(cases: list[Case], *columns: np.ndarray) -> LabelledContexts:
    """Build contexts from the columns case, message and slot."""
    return LabelledContexts(Window(Tokenizer(ASSETS / "nano" / "tokenizer.json")), SLOTS, cases, *columns)


def made(count: int, seed: int = 0) -> LabelledContexts:
    """Build cases of a greeting and a reply: slot 4, then the slot of the wish named by the newest message."""
    random = np.random.default_rng(seed)
    wishes = random.choice(4, count, p=[0.4, 0.3, 0.2, 0.1])
    cases = [
        Case(
            f"c{i}",
            (
                Message("customer", f"hello number {i}"),
                Message("advocate", "hi", "t4"),
                Message("customer", f"please {WISHES[wish]} now"),
                Message("advocate", "done", f"t{wish}"),
            ),
        )
        for i, wish in enumerate(wishes)
    ]
    case = np.repeat(np.arange(count), 2)
    slot = np.stack([np.full(count, 4), wishes], axis=1).ravel()
    return contexts(cases, case, np.tile([1, 3], count), slot)


def accuracy(scores: np.ndarray, slots: np.ndarray) -> float:
    return float((metrics.ranks(scores, slots) == 0).mean())


def test_majority_ranks_by_training_counts() -> None:
    training = made(200)
    scores = baselines.majority(training, 6)(made(3, seed=1))
    counts = np.bincount(training.slot, minlength=6)
    assert scores.shape == (6, 6)
    assert metrics.top(scores, 6)[0].tolist() == np.argsort(-counts, kind="stable").tolist()
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1)


def test_previous_template_is_a_backed_off_conditional_distribution() -> None:
    training = made(200)
    score = baselines.previous_template(training, 6)
    scores = score(made(1, seed=1))
    after_greeting = np.bincount(training.slot[1::2], minlength=6)
    prior = (np.bincount(training.slot, minlength=6) + 1) / (400 + 6)
    np.testing.assert_allclose(np.exp(scores[1]), (after_greeting + 4 * prior) / (200 + 4))
    assert metrics.top(scores, 1)[0] == 4


def test_an_unseen_previous_template_gives_the_majority() -> None:
    training, one = made(200), dataclasses.replace(made(1), slots={"t4": 5}).take(np.array([1]))
    assert one.previous.tolist() == [5]
    scores = baselines.previous_template(training, 6)(one)
    np.testing.assert_allclose(scores, baselines.majority(training, 6)(one))


def test_ngrams_learn_from_the_text() -> None:
    fitted = baselines.fit(made(300), 6, seed=0)
    test = made(100, seed=1)
    found = {name: accuracy(scorer(test), test.slot) for name, scorer in fitted.items()}
    assert found["ngrams"] > 0.99
    assert 0.6 < found["previous_template"] < 0.8
    assert found["majority"] == pytest.approx(0.5)


def test_ngrams_use_the_previous_template() -> None:
    """All texts are equal; only the previous template determines the label."""
    cases = [
        Case(str(i), (Message("customer", "yes"), Message("advocate", "ok", "ab"[i % 2]), Message("customer", "yes")))
        for i in range(40)
    ]
    previous = np.arange(40) % 2
    examples = contexts(cases, np.arange(40), np.full(40, 3), 1 - previous)
    np.testing.assert_array_equal(examples.previous, previous)
    assert accuracy(baselines.ngrams(examples, 2, seed=0)(examples), examples.slot) == 1.0


def test_ngrams_distinguish_roles_and_positions() -> None:
    """`yes` by the customer and by the system, newest or before, are different features."""
    kinds = [("customer", "system"), ("system", "customer")]
    cases = [Case(str(i), (Message(kinds[i % 2][0], "yes"), Message(kinds[i % 2][1], "no"))) for i in range(40)]
    slot = np.arange(40) % 2
    examples = contexts(cases, np.arange(40), np.full(40, 2), slot)
    assert accuracy(baselines.ngrams(examples, 2, seed=0)(examples), slot) == 1.0


def test_a_context_excludes_its_label_and_later_messages() -> None:
    training, test = made(50), made(5, seed=1)
    told = [Case(c.case_id, (*c.messages[:3], Message("advocate", WISHES[3], "t3"))) for c in test.cases]
    scorer = baselines.ngrams(training, 6, seed=0)
    np.testing.assert_array_equal(scorer(test), scorer(dataclasses.replace(test, cases=told)))


def test_ngrams_are_deterministic_and_accept_an_empty_split() -> None:
    training, test = made(50), made(5, seed=1)
    first, again = (baselines.ngrams(training, 6, seed=0)(test) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    nothing = contexts([], *(np.empty(0, np.int64) for _ in range(3)))
    assert all(scorer(nothing).shape == (0, 6) for scorer in baselines.fit(training, 6, seed=0).values())


def test_ngrams_rank_templates_without_examples_last() -> None:
    training, test = made(50), made(20, seed=1)
    probability = np.exp(baselines.ngrams(training, 8, seed=0)(test))
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)
    assert probability[:, 5:].max() < probability[:, :5].min()
    assert probability[:, 5:].min() > 0


def test_ngrams_of_a_single_template_equal_the_majority() -> None:
    training = made(50)
    alone = dataclasses.replace(training, slot=np.zeros(len(training), np.int64))
    scorers = (baselines.ngrams(alone, 8, seed=0), baselines.majority(alone, 8))
    np.testing.assert_array_equal(*(scorer(training) for scorer in scorers))


def test_known_drops_labels_that_are_not_classes() -> None:
    some = dataclasses.replace(made(2), slot=np.array([4, -1, 4, 0]))
    assert some.known().message.tolist() == [1, 1, 3]
