"""Baselines of template classification: the majority class, the previous template, and a linear model of n-grams.

Each is fitted on the run's training labels and returns logits [N S], so that the metrics of the run apply unchanged.

Dims: N contexts, S slots.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from jaxtempl.data.examples import LabelledContexts
from jaxtempl.evaluation.metrics import Logits
from jaxtempl.text.cases import Message, with_text

RECENT = 3  # newest messages, each of which is one view
VIEW: dict[str, Any] = {  # features of one view of a context; punctuation marks are words too
    "ngram_range": (1, 2),
    "token_pattern": r"\w+|[^\w\s]",
    "binary": True,
    "max_features": 50_000,
    "dtype": np.float32,
}
PREVIOUS: dict[str, Any] = {"handle_unknown": "ignore", "dtype": np.float32}
# On star, 3 C, C / 3 or three times the passes change top-1 by less than 0.01.
SOLVER: dict[str, Any] = {"solver": "saga", "C": 30.0, "max_iter": 20}
NOTHING = "nothing_yet"  # text of an empty view

Scorer = Callable[[LabelledContexts], Logits]


def fit(training: LabelledContexts, slots: int, seed: int, progress: bool = False) -> dict[str, Scorer]:
    """Fit all baselines; return them by name, simplest first."""
    return {
        "majority": majority(training, slots),
        "previous_template": previous_template(training, slots),
        "ngrams": ngrams(training, slots, seed, progress),
    }


def majority(training: LabelledContexts, slots: int) -> Scorer:
    """Return log p(t) for every context, from training counts with one added to each (Laplace)."""
    row = _prior(training, slots)
    return lambda examples: np.tile(row, (len(examples), 1))


def _prior(training: LabelledContexts, slots: int) -> Float[np.ndarray, " S"]:
    counts = np.bincount(training.slot, minlength=slots) + 1.0
    return np.log(counts / counts.sum())


def previous_template(training: LabelledContexts, slots: int) -> Scorer:
    """Return log p(t | last template in the context), where "none yet" is one of the conditions.

    Smoothed by Witten and Bell's rule: (n(l, t) + d(l) p(t)) / (n(l) + d(l)), where n counts training examples,
    d(l) is the number of different templates that follow l, and p is the majority's distribution.
    """
    counts = np.zeros((slots + 1, slots))  # -1, none, is the last row
    np.add.at(counts, (training.previous, training.slot), 1)
    different = np.maximum((counts > 0).sum(axis=1, keepdims=True), 1)
    prior = np.exp(_prior(training, slots))[None]
    table = np.log((counts + different * prior) / (counts.sum(axis=1, keepdims=True) + different))
    return lambda examples: table[examples.previous]


def ngrams(training: LabelledContexts, slots: int, seed: int, progress: bool = False) -> Scorer:
    """Fit a multinomial logistic regression over 1- and 2-grams of the newest messages and of the customer's text.

    Each view of a context (the newest message, the one before it, ..., the customer's text so far) has its own tf-idf
    features; the previous template is one more feature. The regression covers only templates that have an example, so
    its distribution is mixed with the majority's in Witten and Bell's proportion. With a single template in the
    examples, this is the majority baseline.
    """
    if len(np.unique(training.slot)) < 2:
        return majority(training, slots)
    if progress:
        print(f"fitting n-grams on {len(training):,} contexts", file=sys.stderr, flush=True)
    model = make_pipeline(_features(), LogisticRegression(**SOLVER, random_state=seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes is bounded on purpose
        model.fit(_views(training), training.slot)

    seen = model.classes_
    share = len(seen) / (len(training) + len(seen))

    def score(examples: LabelledContexts) -> Logits:
        probability = share * np.exp(majority(training, slots)(examples))
        if len(examples):
            probability[:, seen] += (1 - share) * model.predict_proba(_views(examples))
        return np.log(probability)

    return score


def _features() -> ColumnTransformer:
    texts = [(f"view {i}", TfidfVectorizer(**VIEW), i) for i in range(RECENT + 1)]
    return ColumnTransformer([*texts, ("previous template", OneHotEncoder(**PREVIOUS), [RECENT + 1])])


def _views(examples: LabelledContexts) -> np.ndarray:
    """Return [N RECENT + 2]: newest messages with their roles, the customer's text, and the previous template."""
    previous = examples.previous.tolist()
    return np.array([_view(examples.messages(i), last) for i, last in enumerate(previous)], object)


def _view(context: Sequence[Message], previous: int) -> list[Any]:
    recent = [f"{message.role}_role {message.text}" for message in reversed(with_text(context)[-RECENT:])]
    customer = " ".join(message.text for message in context if message.role == "customer")
    return [*recent, *[NOTHING] * (RECENT - len(recent)), customer or NOTHING, previous]
