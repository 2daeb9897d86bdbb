"""Which split a case belongs to, and the proof that nothing held out is trained on."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped

SPLITS = ("train", "validation", "test")
VALIDATION = 0.02  # of the training side where no validation part is given; DESIGN's decision 6

Digests = Shaped[np.ndarray, " n"]  # S16, one text or case_id each
OtherDigests = Shaped[np.ndarray, " m"]


class LeakError(AssertionError):
    """Something held out would be trained on: a fault of this package, never of the data."""


def hash_fraction(name: str) -> float:
    """A number in [0, 1) that depends on `name` alone, so a case keeps its split in every run and on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def split_of(name: str, fractions: Sequence[float]) -> str:
    """The split of a case_id under the fractions of train, validation and test."""
    at = hash_fraction(name)
    if at < fractions[0]:
        return "train"
    return "validation" if at < fractions[0] + fractions[1] else "test"


def is_allowed(texts: Digests, held_out: OtherDigests) -> Bool[np.ndarray, " n"]:
    """Which training texts are equal to no held-out one."""
    return ~np.isin(texts, held_out)


def order(count: int, seed: int) -> Int[np.ndarray, " n"]:
    """The seeded order in which documents are packed."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(count)


@dataclasses.dataclass(frozen=True)
class Proof:
    """What the manifest says about two sides: how many, the sha256 over the sorted digests, and how many are shared."""

    train: int
    held_out: int
    train_sha256: str
    held_out_sha256: str
    shared: int = 0


def prove(what: str, train: Digests, held_out: OtherDigests) -> Proof:
    """Compares two sides digest by digest.

    Raises:
        LeakError: they share one.
    """
    shared = len(np.intersect1d(train, held_out))
    if shared:
        raise LeakError(f"{shared} {what} are on the training side and held out; this is a fault of jaxtempl")
    return Proof(len(train), len(held_out), _sum(train), _sum(held_out))


def _sum(digests: Digests) -> str:
    return hashlib.sha256(np.sort(digests).tobytes()).hexdigest()
