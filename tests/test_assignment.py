"""Assignment of pairs to arms: pinned vectors, uniform and independent buckets, growing ranges, clear refusals."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from jaxtempl.errors import UserError
from jaxtempl.serve.experiments import assignment, definition
from jaxtempl.serve.experiments.assignment import Assignment, assign, bucket
from jaxtempl.serve.experiments.definition import Experiments

START = datetime(2026, 3, 2, tzinfo=UTC)
DURING = START + timedelta(days=3)
ARMS: dict[str, Any] = {"v3": {"bundle": "v3", "range": [0, 0.25]}, "v4": {"bundle": "v4", "range": [0.5, 0.75]}}
TEST = {"name": "v3-v4", "salt": "t", "start": START, "end": START + timedelta(days=14), "arms": ARMS}
HOLDOUT = {"salt": "h", "share": 0.02}


def made(path: Path, **content: Any) -> Experiments:
    path.mkdir(exist_ok=True)
    (path / "experiments.yaml").write_text(yaml.safe_dump(content))
    return definition.read(path / "experiments.yaml")


@pytest.fixture
def running(tmp_path: Path) -> Experiments:
    return made(tmp_path, holdout=HOLDOUT, test=TEST, cap_seconds=300)


@pytest.mark.parametrize(
    ("key", "first_8_bytes"),
    [
        (("holdout", "ada", "1"), 10885845861810492012),
        (("holdout", "ada", "2"), 15241012117447622497),
        (("v3-v4", "ada", "1"), 337559981934333673),
        (("", "", ""), 8762973356911750583),
        (("salt", "Zoë", 'case "7"/\\'), 9937838267461216149),
    ],
)
def test_buckets_are_pinned_so_no_release_reassigns_a_pair(key: tuple[str, str, str], first_8_bytes: int) -> None:
    assert bucket(*key) == first_8_bytes / 2**64
    text = json.dumps(key, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).digest()[:8] == first_8_bytes.to_bytes(8, "big")


def test_the_largest_bucket_is_below_1(monkeypatch: pytest.MonkeyPatch) -> None:
    class Digest:
        def __init__(self, _: bytes) -> None: ...
        def digest(self) -> bytes:
            return b"\xff" * 32

    monkeypatch.setattr(assignment.hashlib, "sha256", Digest)
    assert 1 - 1e-15 < bucket("", "", "") < 1


def test_ids_that_join_to_the_same_text_have_different_buckets() -> None:
    assert bucket("s", "a", "b,c") != bucket("s", "a,b", "c")


def test_buckets_are_uniform_and_independent_between_salts() -> None:
    first, second = ([bucket(salt, f"a{i % 20}", str(i)) for i in range(4000)] for salt in ("h", "t"))
    assert stats.kstest(first, "uniform").pvalue > 0.01
    assert stats.spearmanr(first, second).pvalue > 0.01


def test_arms_get_their_shares_and_the_rest_is_treated(running: Experiments) -> None:
    found = [assign(running, f"a{i % 20}", str(i), DURING) for i in range(8000)]
    names = ("holdout", "v3", "v4", "treatment")
    counts = [sum(one is not None and one.arm == name for one in found) for name in names]
    assert sum(counts) == 8000
    shares = [0.02, 0.98 * 0.25, 0.98 * 0.25, 0.98 * 0.5]
    assert stats.chisquare(counts, [8000 * share for share in shares]).pvalue > 0.001


def test_the_holdout_does_not_depend_on_a_test(running: Experiments) -> None:
    pairs = [("ada", str(i)) for i in range(500)]
    held = [[assign(running, *pair, at) for pair in pairs] for at in (DURING, START - timedelta(days=9))]
    during, before = ([one for one in arms if one and one.arm == "holdout"] for arms in held)
    assert during == before != []


def test_a_test_assigns_from_its_start_until_its_end(running: Experiments) -> None:
    case = next(str(i) for i in range(99) if bucket("t", "ada", str(i)) < 0.25 and bucket("h", "ada", str(i)) > 0.02)
    arms = [assign(running, "ada", case, at) for at in (START - timedelta(seconds=1), START, START + timedelta(14))]
    assert [one and one[:2] for one in arms] == [("holdout", "treatment"), ("v3-v4", "v3"), ("holdout", "treatment")]
    assert arms[1] == Assignment("v3-v4", "v3", bucket("t", "ada", case))


def test_no_arm_without_an_advocate_a_case_or_an_experiment(running: Experiments) -> None:
    assert assign(running, None, "1", DURING) is None
    assert assign(running, "ada", None, DURING) is None
    assert assign(Experiments(), "ada", "1", DURING) is None


def test_ranges_may_grow_and_keep_every_pair_in_its_arm(running: Experiments, tmp_path: Path) -> None:
    arms = {"v3": {"bundle": "v3", "range": [0, 0.5]}, "v4": {"bundle": "v4", "range": [0.5, 1]}}
    grown = made(tmp_path / "grown", holdout=HOLDOUT, test={**TEST, "arms": arms})
    definition.check_growth(running, grown, DURING)
    for i in range(500):
        before, after = (assign(one, "ada", str(i), DURING) for one in (running, grown))
        assert before == after or (before and before.arm == "treatment")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": {**ARMS, "v4": {"bundle": "v4", "range": [0.6, 1]}}}, r"v4 shrinks from \[0.5, 0.75\] to \[0.6, 1.0"),
        ({"arms": {**ARMS, "v3": {"bundle": "v5", "range": [0, 0.3]}}}, "the bundle of arm v3 changes"),
        ({"arms": {"v3": ARMS["v3"], "v5": ARMS["v4"]}}, "arm v4 disappears; end the test instead"),
        ({"salt": "other"}, "the salt or start of the running test v3-v4 changes"),
        ({"name": "next"}, "next has the salt of the running test v3-v4; give it another salt"),
    ],
)
def test_what_would_reassign_a_pair_is_refused(
    running: Experiments, changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    new = made(tmp_path / "new", holdout=HOLDOUT, test={**TEST, **changed})
    with pytest.raises(UserError, match=message):
        definition.check_growth(running, new, DURING)
    definition.check_growth(running, new, START - timedelta(days=1))  # it does not run yet


def test_the_holdout_never_changes_and_a_test_may_end(running: Experiments, tmp_path: Path) -> None:
    definition.check_growth(running, made(tmp_path / "ended", holdout=HOLDOUT), DURING)
    for holdout in ({**HOLDOUT, "share": 0.05}, {**HOLDOUT, "salt": "x"}):
        with pytest.raises(UserError, match="the holdout changes; keep its salt and share"):
            definition.check_growth(running, made(tmp_path / "new", holdout=holdout), DURING)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": {**ARMS, "v4": {"bundle": "v4", "range": [0.2, 1]}}}, "the ranges of arms v3 and v4 overlap"),
        ({"arms": {"v3": ARMS["v3"]}}, "test.arms has 1 arms; two or more are needed"),
        ({"arms": {**ARMS, "v4": {"bundle": "v4", "range": [0.7, 0.7]}}}, "the range of arm v4 is empty"),
        ({"arms": {**ARMS, "holdout": {"bundle": "b", "range": [0.8, 1]}}}, "'holdout', the name of an arm outside"),
        ({"arms": {**ARMS, "v4": {"bundle": "v4", "range": [0.7, 1.5]}}}, "Expected `float` <= 1"),
        ({"salt": "h"}, "test.salt equals holdout.salt"),
        ({"end": START}, "is not after test.start"),
        ({"start": START.replace(tzinfo=None)}, "timezone"),
        ({"colour": 1}, "unknown field `colour`"),
    ],
)
def test_an_impossible_file_is_refused_in_one_line(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        made(tmp_path, holdout=HOLDOUT, test={**TEST, **changed})
    assert "\n" not in str(error.value)


def test_a_newer_file_and_a_share_out_of_bounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has format 2; this release reads up to 1"):
        made(tmp_path, format=2)
    with pytest.raises(UserError, match="Expected `float` < 1"):
        made(tmp_path, holdout={"salt": "h", "share": 1})
