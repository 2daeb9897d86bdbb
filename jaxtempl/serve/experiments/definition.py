"""The file of experiments: a holdout for the system's life, and at most one A/B test between two or more bundles.

Format 1, in YAML; times have a zone, and ranges are half-open shares of the buckets:

    holdout: {salt: holdout-2026, share: 0.02}
    cap_seconds: 300
    test:
      name: v3-v4
      salt: v3-v4-2026
      start: 2026-03-02T00:00:00Z
      end: 2026-03-16T00:00:00Z
      arms:
        v3: {bundle: bundles/v3, range: [0, 0.5]}
        v4: {bundle: bundles/v4, range: [0.5, 1]}
    shadow: {bundle: bundles/v5, share: 0.1}
"""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec

from jaxtempl.config.structs import read_struct
from jaxtempl.errors import UserError

FORMAT = 1
HOLDOUT, TREATMENT = "holdout", "treatment"  # arms outside of a test

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[\w.+-]+$(?!\n)")]
Salt = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Holdout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pairs whose suggestions are withheld.

    Attributes:
        salt: Salt of their buckets.
        share: Share of all pairs.
    """

    salt: Salt
    share: Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One arm of a test.

    Attributes:
        bundle: Folder of its bundle.
        range: Buckets of its pairs: from the first bound, below the second.
    """

    bundle: str
    range: tuple[Share, Share]

    def __contains__(self, bucket: float) -> bool:
        """Return whether a bucket is in the arm's range."""
        return self.range[0] <= bucket < self.range[1]


class ABTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A test between bundles, among the pairs that are not held out.

    Attributes:
        name: Name of the test.
        salt: Salt of its buckets.
        start: First moment of the test.
        end: Moment at which it ends.
        arms: Arms by name; pairs in no range get the production model.
    """

    name: Name
    salt: Salt
    start: Annotated[datetime, msgspec.Meta(tz=True)]
    end: Annotated[datetime, msgspec.Meta(tz=True)]
    arms: dict[Name, Arm]

    def is_running(self, at: datetime) -> bool:
        """Return whether the test runs at a time."""
        return self.start <= at < self.end

    @property
    def weights(self) -> dict[str, float]:
        """Share of the buckets of each arm."""
        return {name: arm.range[1] - arm.range[0] for name, arm in self.arms.items()}


class Shadow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle whose answers are stored and never shown.

    Attributes:
        bundle: Folder of the bundle.
        share: Share of the requests that it computes too.
    """

    bundle: str
    share: Annotated[float, msgspec.Meta(gt=0, le=1)]


class Experiments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of experiments.

    Attributes:
        holdout: The holdout; without it, every pair gets suggestions.
        test: The A/B test, if any.
        shadow: The shadow, if any.
        cap_seconds: Cap on selection times, declared before the data exist; None reports raw times alone.
        format: Version of the file's format.
    """

    holdout: Holdout | None = None
    test: ABTest | None = None
    shadow: Shadow | None = None
    cap_seconds: Annotated[float, msgspec.Meta(gt=0)] | None = None
    format: int = FORMAT

    @property
    def bundles(self) -> list[str]:
        """Folders of all bundles."""
        arms = [arm.bundle for arm in self.test.arms.values()] if self.test else []
        return [*arms, self.shadow.bundle] if self.shadow else arms

    @property
    def sha256(self) -> str:
        """Sum of the content, which exposures are stored with."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


def read(path: Path) -> Experiments:
    """Read and check a file of experiments.

    Raises:
        UserError: The file is missing, newer than this release, or describes impossible experiments.
    """
    return read_struct(path, Experiments, FORMAT, _faults, "docs/experiments.md has an example")


def check_growth(running: Experiments, new: Experiments, at: datetime) -> None:
    """Check that replacing the running experiments moves no pair to another arm.

    The holdout stays as it is for the system's life. A running test may be ended, and its ranges may grow into buckets
    of no arm.

    Raises:
        UserError: The replacement would reassign pairs.
    """
    if faults := list(_reassignments(running, new, at)):
        raise UserError(f"the new experiments would reassign pairs: {'; '.join(faults)}")


def _reassignments(running: Experiments, new: Experiments, at: datetime) -> Iterator[str]:
    if running.holdout and running.holdout != new.holdout:
        yield "the holdout changes; keep its salt and share"
    was, now = running.test, new.test
    if not (was and now and was.is_running(at)):
        return
    if was.name != now.name:
        if was.salt == now.salt:
            yield f"{now.name} has the salt of the running test {was.name}; give it another salt"
        return
    if (was.salt, was.start) != (now.salt, now.start):
        yield f"the salt or start of the running test {was.name} changes; keep both, or give the test another name"
    for name, arm in was.arms.items():
        yield from _changes(name, arm, now.arms.get(name))


def _changes(name: str, was: Arm, now: Arm | None) -> Iterator[str]:
    if now is None:
        yield f"arm {name} disappears; end the test instead"
    elif now.range[0] > was.range[0] or now.range[1] < was.range[1]:
        yield f"the range of arm {name} shrinks from {list(was.range)} to {list(now.range)}; ranges only grow"
    elif now.bundle != was.bundle:
        yield f"the bundle of arm {name} changes; give the test another name and salt"


def _faults(experiments: Experiments) -> Iterator[str]:
    test = experiments.test
    if test is None:
        return
    if experiments.holdout and experiments.holdout.salt == test.salt:
        yield "test.salt equals holdout.salt, so the holdout would take pairs of one arm alone; use another salt"
    if test.end <= test.start:
        yield f"test.end {test.end.isoformat()} is not after test.start {test.start.isoformat()}"
    if len(test.arms) < 2:
        yield f"test.arms has {len(test.arms)} arms; two or more are needed"
    for name in sorted({HOLDOUT, TREATMENT} & set(test.arms)):
        yield f"test.arms has {name!r}, the name of an arm outside of tests; use another name"
    for name, arm in test.arms.items():
        if arm.range[0] >= arm.range[1]:
            yield f"the range of arm {name} is empty: {list(arm.range)}; write [LOW, HIGH]"
    for (first, one), (second, other) in pairwise(sorted(test.arms.items(), key=lambda item: item[1].range)):
        if other.range[0] < one.range[1]:
            yield f"the ranges of arms {first} and {second} overlap; a pair gets one arm"
