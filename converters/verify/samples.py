"""Contexts that a converted network is held to the real one on: some of every length.

Where a length has no real ones, cases are joined until they are as long, and that is told. No JAX.
"""

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtempl.errors import UserError
from jaxtempl.text.window import bucket_of

LEAST = 100  # of each length; issue 4
SEARCHED = 20  # times as many contexts are looked through for those of rare lengths


class VerificationSamples(NamedTuple):
    """Token ids of each context, and of each length how many are real and how many were made by joining."""

    rows: list[list[int]]
    real: Mapping[int, int]
    made: Mapping[int, int]


def choose(found: Iterator[list[int]], buckets: Sequence[int], wanted: int) -> VerificationSamples:
    """So many contexts, an equal share of each length (at least 100, if so many are wanted) before others.

    Args:
        found: contexts in a random order.
        buckets: lengths that they are padded to.
        wanted: how many.

    Raises:
        UserError: there are none.
    """
    seen = list(itertools.islice((row for row in found if row), SEARCHED * wanted))
    if not seen:
        raise UserError("there are no contexts to verify the bundle on; pass --data=DIR or --cases=FILE that has some")
    least = min(LEAST, wanted // len(buckets))
    by_bucket = {bucket: [row for row in seen if bucket_of(len(row), buckets) == bucket] for bucket in buckets}
    rows = [row for own in by_bucket.values() for row in own[:least]]
    taken = {id(row) for row in rows}
    rows += itertools.islice((row for row in seen if id(row) not in taken), max(wanted - len(rows), 0))
    joined = {bucket: _joined(seen, buckets, bucket, max(least - len(own), 0)) for bucket, own in by_bucket.items()}
    real = collections.Counter(bucket_of(len(row), buckets) for row in rows)
    made = {bucket: len(own) for bucket, own in joined.items() if own}
    return VerificationSamples(
        [*rows, *(row for own in joined.values() for row in own)], dict(sorted(real.items())), made
    )


def _joined(seen: Sequence[list[int]], buckets: Sequence[int], bucket: int, count: int) -> list[list[int]]:
    """Contexts of a bucket's lengths, made of others one after the other."""
    random = np.random.default_rng(bucket)
    shortest = max((b for b in buckets if b < bucket), default=0) + 1
    tokens = itertools.chain.from_iterable(itertools.cycle(seen))
    return [list(itertools.islice(tokens, int(random.integers(shortest, bucket + 1)))) for _ in range(count)]


def to_dict(chosen: VerificationSamples) -> dict[str, Any]:
    """What `bundle.json` says of them: how many, and of each length how many are real and how many made."""
    counts = {name: {str(k): v for k, v in getattr(chosen, name).items()} for name in ("real", "made")}
    return {"contexts": len(chosen.rows), **counts}
