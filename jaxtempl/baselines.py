"""What a model must beat: the majority class, the previous template, and a linear classifier of n-grams.

Each is fitted on the run's own training labels and gives scores [N S], log-probabilities up to a constant a row,
so that the metrics of the run apply to it unchanged.

Dims: N contexts, S slots, T messages, F features, B batch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from scipy import sparse, special
from sklearn.feature_extraction.text import HashingVectorizer
from tqdm import tqdm

from jaxtempl.cases import ROLES
from jaxtempl.examples import Examples

RECENT = 3  # messages whose n-grams are marked with their place and role
HASHED = 2**18  # features that a role's n-grams are hashed to
HASHING: dict[str, Any] = {
    "n_features": HASHED,
    "ngram_range": (1, 2),
    "token_pattern": r"\w+|[^\w\s]",
    "alternate_sign": False,
    "norm": None,
    "binary": True,
    "dtype": np.float32,
}
KEPT = 50_000  # most frequent features of a view
BATCH, RATE = 64, 0.05  # on cases held out from star's training side, twice or half of either moves top-1 by under .01
ENOUGH, PASSES = 24_000, (3, 40)  # contexts to see, and the fewest and most passes that this may take

Sparse = Any  # scipy.sparse.csr_matrix, which has no element types
Scores = Float[np.ndarray, "N S"]
Scorer = Callable[[Examples], Scores]


def fit(training: Examples, slots: int, seed: int, progress: bool = False) -> dict[str, Scorer]:
    """All baselines by name, simplest first."""
    return {
        "majority": majority(training, slots),
        "previous_template": previous_template(training, slots),
        "ngrams": ngrams(training, slots, seed, progress),
    }


def majority(training: Examples, slots: int) -> Scorer:
    """Scores every context alike, log p(t): training counts with one added to each (Laplace)."""
    row = _prior(training, slots)
    return lambda examples: np.tile(row, (len(examples), 1))


def _prior(training: Examples, slots: int) -> Float[np.ndarray, " S"]:
    counts = np.bincount(training.slot, minlength=slots) + 1.0
    return np.log(counts / counts.sum())


def previous_template(training: Examples, slots: int) -> Scorer:
    """Scores log p(t | last template in the context), with "none yet" as one of the conditions.

    Backed off by Witten and Bell's rule: (n(l, t) + d(l) p(t)) / (n(l) + d(l)), where n counts training examples,
    d(l) is how many different templates follow l, and p is the majority's distribution.
    """
    counts = np.zeros((slots + 1, slots))  # -1, none, is the last row
    np.add.at(counts, (training.previous, training.slot), 1)
    different = np.maximum((counts > 0).sum(axis=1, keepdims=True), 1)
    prior = np.exp(_prior(training, slots))[None]
    table = np.log((counts + different * prior) / (counts.sum(axis=1, keepdims=True) + different))
    return lambda examples: table[examples.previous]


def ngrams(training: Examples, slots: int, seed: int, progress: bool = False) -> Scorer:
    """Multinomial logistic regression over 1- and 2-grams of the last messages and of all the customer wrote.

    Each view of a context (the newest message, the one before it, ..., the customer's text so far) holds its n-grams
    apart from the others', weighted by inverse document frequency and scaled to length one; the previous template is
    one more feature.
    """
    views = [_View(raw) for raw in _raw_views(training)]

    def features(examples: Examples) -> Sparse:
        text = [view(raw) for view, raw in zip(views, _raw_views(examples), strict=True)]
        return sparse.csr_matrix(sparse.hstack([*text, _one_hot(examples.previous, slots)], "csr"))

    weights, bias = _logistic(features(training), training.slot, slots, seed, progress)
    return lambda examples: features(examples) @ weights + bias


class _View:
    """Keeps the frequent features of one view and weights them: tf-idf, ln(N / df) + 1, rows of length one."""

    def __init__(self, raw: Sparse) -> None:
        frequency = np.bincount(raw.indices, minlength=raw.shape[1])
        frequent = np.argsort(-frequency, kind="stable")[:KEPT]
        self._kept = np.sort(frequent[frequency[frequent] > 1])
        self._weights = sparse.diags_array(np.log(raw.shape[0] / frequency[self._kept]) + 1, dtype=np.float32)

    def __call__(self, raw: Sparse) -> Sparse:
        weighted = raw[:, self._kept] @ self._weights
        length = np.sqrt(weighted.power(2).sum(axis=1)).A1
        return sparse.diags_array(1 / np.maximum(length, 1e-9), dtype=np.float32) @ weighted


def _raw_views(examples: Examples) -> list[Sparse]:
    """Which n-grams each view of each context has: each message is read once and taken by every context it is in."""
    messages = [message for case in examples.cases for message in case.messages]
    role = np.array([ROLES.index(message.role) for message in messages], np.int64)
    grams = _grams([message.text for message in messages], role)
    start = np.cumsum([0, *(len(case.messages) for case in examples.cases)])[examples.case]
    end = start + examples.message
    spans = [(np.maximum(end - back, start), end - back + 1) for back in range(1, RECENT + 1)]
    recent = [_select(first, last, np.ones(len(role), bool)) @ grams for first, last in spans]
    customer = _select(start, end, role == ROLES.index("customer")) @ grams
    return [_binary(view) for view in (*recent, customer)]


def _grams(texts: list[str], role: np.ndarray) -> Sparse:
    """n-grams [T F] of each message, in its role's own columns."""
    found: Sparse = HashingVectorizer(**HASHING).transform(texts or [""])[: len(texts)]
    columns = found.indices + np.repeat(role, np.diff(found.indptr)) * HASHED
    return sparse.csr_matrix((found.data, columns, found.indptr), shape=(len(texts), HASHED * len(ROLES)))


def _select(first: np.ndarray, last: np.ndarray, among: np.ndarray) -> Sparse:
    """[N T] with 1 where a context takes a message: those from `first` up to `last` that are `among`."""
    chosen = [np.flatnonzero(among[a:b]) + a for a, b in zip(first, last, strict=True)]
    pointers = np.cumsum([0, *map(len, chosen)])
    columns = np.concatenate([np.empty(0, np.int64), *chosen])
    return sparse.csr_matrix((np.ones(len(columns), np.float32), columns, pointers), shape=(len(first), len(among)))


def _binary(counts: Sparse) -> Sparse:
    counts.data[:] = 1
    return counts


def _one_hot(slot: np.ndarray, slots: int) -> Sparse:
    """[N S + 1]; the last column is for none."""
    ones = np.ones(len(slot), np.float32)
    return sparse.csr_matrix((ones, (np.arange(len(slot)), slot % (slots + 1))), shape=(len(slot), slots + 1))


def _logistic(
    features: Sparse, slot: np.ndarray, slots: int, seed: int, progress: bool
) -> tuple[Float32[np.ndarray, "F S"], Float32[np.ndarray, " S"]]:
    """Weights and bias of a softmax classifier, by AdaGrad with one rate a feature (Duchi et al. 2011).

    A batch touches the rows of the features it has alone. With hundreds of classes and sparse text this is several
    times faster than one-against-rest solvers and ranks better, most of all where labels are few.
    """
    weights, bias = np.zeros((features.shape[1], slots), np.float32), np.zeros(slots, np.float32)
    squares = np.full((features.shape[1], 1), 1e-8, np.float32)
    passes = int(np.clip(ENOUGH // max(len(slot), 1), *PASSES))
    random = np.random.default_rng(seed)
    orders = np.concatenate([random.permutation(len(slot)) for _ in range(passes)])
    for start in tqdm(range(0, len(orders), BATCH), "n-grams", unit="batch", disable=not progress):
        chosen = orders[start : start + BATCH]
        columns, error = _errors(features[chosen], slot[chosen], weights, bias)
        gradient = error[0].T @ error[1] / len(chosen)
        squares[columns] += (gradient**2).mean(axis=1, keepdims=True)
        weights[columns] -= RATE * gradient / np.sqrt(squares[columns])
        bias -= RATE * error[1].mean(axis=0)
    return weights, bias


def _errors(
    rows: Sparse, slot: np.ndarray, weights: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, tuple[Sparse, Float32[np.ndarray, "B S"]]]:
    """The columns that the rows use, the rows over those alone, and softmax minus label."""
    columns, place = np.unique(rows.indices, return_inverse=True)
    compact = sparse.csr_matrix((rows.data, place, rows.indptr), shape=(rows.shape[0], len(columns)))
    error = special.softmax(compact @ weights[columns] + bias, axis=1)
    error[np.arange(len(slot)), slot] -= 1
    return columns, (compact, error)
