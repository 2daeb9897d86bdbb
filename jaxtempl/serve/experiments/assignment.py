"""Assign a pair of advocate and case to an arm: a pure function of the salts and both ids.

The same pair gets the same arm on every server and after every restart; nothing is stored.
"""

import hashlib
import math
from datetime import datetime
from typing import NamedTuple

import msgspec

from jaxtempl.serve.experiments.definition import HOLDOUT, TREATMENT, Experiments

BELOW_1 = math.nextafter(1, 0)  # the largest sums would round to 1, which is in no range


class Assignment(NamedTuple):
    """The arm of a pair.

    Attributes:
        experiment: Name of the test that the arm belongs to, or `holdout` outside of a test.
        arm: Name of the arm, `holdout` or `treatment`.
        bucket: Bucket by the salt that decided.
    """

    experiment: str
    arm: str
    bucket: float


def bucket(salt: str, advocate_id: str, case_id: str) -> float:
    """Return a pair's bucket in [0, 1): the first 8 bytes of a sha256, as a big-endian integer, over 2^64.

    The sha256 is of the JSON list `["salt","advocate_id","case_id"]` in UTF-8, without spaces or ASCII escapes.
    """
    digest = hashlib.sha256(msgspec.json.encode([salt, advocate_id, case_id])).digest()
    return min(int.from_bytes(digest[:8], "big") / 2**64, BELOW_1)


def assign(experiments: Experiments, advocate_id: str | None, case_id: str | None, at: datetime) -> Assignment | None:
    """Return the assignment of a pair at a time.

    The holdout comes first, so it never depends on a test. Pairs outside of the ranges of a running test are treated.

    Returns:
        None without an advocate or a case, or if there is neither a holdout nor a running test.
    """
    if advocate_id is None or case_id is None:
        return None
    holdout, test = experiments.holdout, experiments.test
    by_holdout = bucket(holdout.salt, advocate_id, case_id) if holdout else None
    if holdout and by_holdout is not None and by_holdout < holdout.share:
        return Assignment(HOLDOUT, HOLDOUT, by_holdout)
    if test and test.is_running(at):
        by_test = bucket(test.salt, advocate_id, case_id)
        for name, arm in test.arms.items():
            if by_test in arm:
                return Assignment(test.name, name, by_test)
    return None if by_holdout is None else Assignment(HOLDOUT, TREATMENT, by_holdout)
