"""The split of a case, and the proof that no held-out text is trained on."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped

SPLITS = ("train", "validation", "test")
VALIDATION = 0.02  # share of the training side, where no validation part is given; DESIGN's decision 6

Digests = Shaped[np.ndarray, " n"]  # S16, of a text or a case_id
OtherDigests = Shaped[np.ndarray, " m"]


class LeakError(AssertionError):
    """A held-out text would be trained on: a fault of this package, never of the data."""


def hash_fraction(name: str) -> float:
    """Return a number in [0, 1) that depends on `name` alone, so that a case has the same split on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def split_of(name: str, fractions: Sequence[float]) -> str:
    """Return the split of a case_id, given the fractions of train, validation and test."""
    fraction = hash_fraction(name)
    if fraction < fractions[0]:
        return "train"
    return "validation" if fraction < fractions[0] + fractions[1] else "test"


def is_allowed(texts: Digests, held_out: OtherDigests) -> Bool[np.ndarray, " n"]:
    """Return a mask of the training texts that equal no held-out text."""
    return ~np.isin(texts, held_out)


def order(count: int, seed: int) -> Int[np.ndarray, " n"]:
    """Return the seeded order in which documents are packed."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(count)


@dataclasses.dataclass(frozen=True)
class Proof:
    """Two sides in the manifest: their numbers of items, the sha256 of the sorted digests, and the number in both."""

    train: int
    held_out: int
    train_sha256: str
    held_out_sha256: str
    shared: int = 0


def prove(what: str, train: Digests, held_out: OtherDigests) -> Proof:
    """Compare two sides digest by digest.

    Raises:
        LeakError: an item is on both sides.
    """
    shared = len(np.intersect1d(train, held_out))
    if shared:
        raise LeakError(f"{shared} {what} are on the training side and held out; this is a fault of jaxtempl")
    return Proof(len(train), len(held_out), _sum(train), _sum(held_out))


def _sum(digests: Digests) -> str:
    return hashlib.sha256(np.sort(digests).tobytes()).hexdigest()
