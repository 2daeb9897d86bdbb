"""Contexts of every length, on which a converted network is compared with its source.

Where a length has too few real contexts, contexts are joined to that length. Ids that no context has form contexts too,
as an export can break any row of the embedding. Both are counted separately. No JAX.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        made: number of contexts of each length that were joined from others or formed of ids that no other has.
    """

    rows: list[list[int]]
    real: Mapping[int, int]
    made: Mapping[int, int]


def choose(
    contexts: Iterator[list[int]], buckets: Sequence[int], count: int, ids: Iterable[int]
) -> VerificationSamples:
    """Choose contexts: first an equal share of each length, at most 100 each, then others.

    Args:
        contexts: token ids of contexts in a random order; empty ones are skipped.
        buckets: lengths that contexts are padded to.
        count: number of real contexts.
        ids: token ids that text can yield, each of which some context has.

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
    made = [row for b, own in by_bucket.items() for row in _joined(seen, buckets, b, max(share - len(own), 0))]
    made += _rows_of_missing(ids, rows + made, max(buckets))
    return VerificationSamples([*rows, *made], _count(rows, buckets), _count(made, buckets))


def _rows_of_missing(ids: Iterable[int], rows: Sequence[list[int]], length: int) -> list[list[int]]:
    """Return rows of at most `length` ids, which have every id that `rows` lack."""
    missing = sorted(set(ids).difference(*rows))
    return [missing[first : first + length] for first in range(0, len(missing), length)]


def _count(rows: Sequence[list[int]], buckets: Sequence[int]) -> dict[int, int]:
    """Return the number of rows of each length that has any."""
    return dict(sorted(collections.Counter(bucket_of(len(row), buckets) for row in rows).items()))


def _joined(seen: Sequence[list[int]], buckets: Sequence[int], bucket: int, count: int) -> list[list[int]]:
    """Return contexts of a bucket's lengths, cut from all others joined."""
    random = np.random.default_rng(bucket)
    shortest = max((b for b in buckets if b < bucket), default=0) + 1
    tokens = itertools.chain.from_iterable(itertools.cycle(seen))
    return [list(itertools.islice(tokens, int(random.integers(shortest, bucket + 1)))) for _ in range(count)]


def to_dict(chosen: VerificationSamples) -> dict[str, Any]:
    """Return the counts as they are stored in `bundle.json`: all contexts, and the real and made of each length."""
    counts = {"real": chosen.real, "made": chosen.made}
    return {"contexts": len(chosen.rows)} | {k: {str(b): n for b, n in v.items()} for k, v in counts.items()}
