"""Contexts of every length, on which a converted network is compared with its source.

Where a length has too few real contexts, contexts are joined to that length, and counted separately. No JAX.
"""

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtempl.errors import UserError
from jaxtempl.text.window import bucket_of

MIN_PER_LENGTH = 100  # issue 4
SEARCH_FACTOR = 20  # times as many contexts are read to find those of rare lengths


class VerificationSamples(NamedTuple):
    """Contexts to compare networks on.

    Attributes:
        rows: token ids of each context.
        real: number of real contexts of each length.
        joined: number of joined contexts of each length.
    """

    rows: list[list[int]]
    real: Mapping[int, int]
    joined: Mapping[int, int]


def choose(contexts: Iterator[list[int]], buckets: Sequence[int], count: int) -> VerificationSamples:
    """Choose contexts: first an equal share of each length, at most 100 each, then others.

    Args:
        contexts: token ids of contexts in a random order; empty ones are skipped.
        buckets: lengths that contexts are padded to.
        count: number of contexts.

    Raises:
        UserError: there are no contexts.
    """
    seen = list(itertools.islice((row for row in contexts if row), SEARCH_FACTOR * count))
    if not seen:
        raise UserError("there are no contexts to verify the bundle on; pass --data=DIR or --cases=FILE that has some")
    share = min(MIN_PER_LENGTH, count // len(buckets))
    by_bucket = {bucket: [row for row in seen if bucket_of(len(row), buckets) == bucket] for bucket in buckets}
    rows = [row for members in by_bucket.values() for row in members[:share]]
    taken = {id(row) for row in rows}
    rows += itertools.islice((row for row in seen if id(row) not in taken), max(count - len(rows), 0))
    joined = {b: _joined(seen, buckets, b, max(share - len(members), 0)) for b, members in by_bucket.items()}
    real = collections.Counter(bucket_of(len(row), buckets) for row in rows)
    return VerificationSamples(
        rows=[*rows, *(row for members in joined.values() for row in members)],
        real=dict(sorted(real.items())),
        joined={bucket: len(members) for bucket, members in joined.items() if members},
    )


def _joined(seen: Sequence[list[int]], buckets: Sequence[int], bucket: int, count: int) -> list[list[int]]:
    """Return contexts of a bucket's lengths, cut from all others joined."""
    random = np.random.default_rng(bucket)
    shortest = max((b for b in buckets if b < bucket), default=0) + 1
    tokens = itertools.chain.from_iterable(itertools.cycle(seen))
    return [list(itertools.islice(tokens, int(random.integers(shortest, bucket + 1)))) for _ in range(count)]


def to_dict(chosen: VerificationSamples) -> dict[str, Any]:
    """Return the counts as they are stored in `bundle.json`: all contexts, and the real and joined of each length."""
    counts = {"real": chosen.real, "made": chosen.joined}
    return {"contexts": len(chosen.rows)} | {k: {str(b): n for b, n in v.items()} for k, v in counts.items()}
