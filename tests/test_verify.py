"""Tests of the comparison of two networks, with hand-made networks."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from converters.verify import samples, verify
from converters.verify.verify import Comparison
from jaxtempl.errors import UserError

RANDOM = np.random.default_rng(0)
BUCKETS = (4, 8)


def network(error: float = 0.0, at: int = -1) -> Any:
    """Return a network whose logits [B 6] depend only on real tokens and are off by `error` in one slot."""
    table = np.random.default_rng(1).standard_normal((50, 6)).astype(np.float32)

    def logits(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        rows = [table[row[:n]].sum(axis=0) for row, n in zip(ids, lengths, strict=True)]
        found = np.stack(rows).astype(np.float32)
        found[:, at] += np.float32(error)
        return found

    return logits


ROWS = [RANDOM.integers(0, 50, n).tolist() for n in RANDOM.integers(1, 9, 200)]


def shifted(base: Any, change: Any) -> Any:
    return lambda ids, lengths: change(base(ids, lengths))


def test_a_network_agrees_with_itself() -> None:
    same = network()
    found = verify.compare(same, same, ROWS, BUCKETS)
    assert found.compared == 2 * len(ROWS)
    assert (found.top1, found.top5, found.ties, found.largest_difference, found.not_finite) == (1, 1, 0, 0, 0)
    assert not verify.find_faults(found, "fp32")


def test_every_length_runs_alone_and_in_a_batch() -> None:
    same, shapes = network(), []
    verify.compare(same, lambda ids, n: (shapes.append(ids.shape), same(ids, n))[1], ROWS, BUCKETS)
    batched = [shape for shape in shapes if shape[1] in BUCKETS and shape[0] > 1]
    assert {length for _, length in batched} == set(BUCKETS)
    assert sum(rows for rows, _ in batched) + (len(shapes) - len(batched)) >= 2 * len(ROWS)
    assert {length for rows, length in shapes if rows == 1} == set(range(1, 9))


def test_small_errors_are_ties_and_large_errors_are_faults() -> None:
    same = network()
    near = verify.compare(same, shifted(same, lambda x: x + np.float32([1e-3, 0, 0, 0, 0, 0])), ROWS, BUCKETS)
    assert near.largest_difference == pytest.approx(1e-3, rel=1e-2)
    assert near.top1_outside_ties == 1
    assert near.ties <= 0.01
    assert not verify.find_faults(near, "fp16")
    moved = dataclasses.replace(near, top1=0.995)
    assert verify.find_faults(moved, "fp32") == ["top-1 agrees in 99.50% in all, not 99.9%"]
    assert not verify.find_faults(moved, "fp16")
    far = verify.compare(same, shifted(same, lambda x: x[:, ::-1]), ROWS, BUCKETS)
    assert far.ties > 0.9
    assert any("are ties" in fault for fault in verify.find_faults(far, "fp16"))
    assert all(verify.find_faults(far, dtype) for dtype in ("fp32", "fp16"))


def test_a_nan_is_a_fault_and_never_the_best_slot() -> None:
    same = network()

    def broken(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        found = same(ids, lengths)
        found[0, found[0].argmax()] = np.nan
        return found

    found = verify.compare(same, broken, ROWS, BUCKETS)
    assert found.not_finite > 200  # one in each batch and in each single row
    assert found.top1 < 1
    assert any("are not finite" in fault for fault in verify.find_faults(found, "fp16"))


def test_every_token_of_a_language_model_counts_except_padding() -> None:
    table = np.random.default_rng(2).standard_normal((50, 6)).astype(np.float32)
    padding = np.arange(8)[None, :, None]

    def wrong_in_padding(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return np.where(padding[:, : ids.shape[1]] < lengths[:, None, None], table[ids], 9).astype(np.float32)

    found = verify.compare(lambda ids, _: table[ids], wrong_in_padding, ROWS, BUCKETS)
    assert found.compared == 2 * sum(map(len, ROWS))
    assert found.largest_difference == 0


def measured(contexts: int, ties: int = 0, other: int = 0) -> verify.Agreement:
    """Return an agreement of `contexts`, each compared twice, with some ties and some tied top-1 that differ."""
    shares = {"ties": ties / contexts, "top1": 1 - other / contexts, "top1_outside_ties": 1.0, "top5": 1.0}
    return verify.Agreement(2 * contexts, largest_logit=1.0, largest_difference=0.0, not_finite=0, **shares)


@pytest.mark.parametrize(
    ("dtype", "figures", "needed"),
    [
        ("fp16", measured(24, ties=3), 80),  # 12.5 %, which half of the allowed 10 % exceeds in 11.6 % of samples
        ("fp16", measured(24, ties=4), 0),  # 2.9 %
        ("fp16", measured(8, ties=8), 0),
        ("fp32", measured(20, ties=1), 800),
        ("fp32", measured(200, ties=3, other=1), 8000),
        ("fp32", measured(1000, ties=11), 0),
        ("tensorrt-fp8", measured(4, ties=2), 20),
        ("fp16", measured(10_000, ties=1001), 0),
        ("fp16", measured(24, ties=2), 0),  # no fault
        ("fp16", dataclasses.replace(measured(24, ties=3), not_finite=1), 0),
        ("fp16", dataclasses.replace(measured(24, ties=3), top1_outside_ties=0.9), 0),
    ],
)
def test_a_fault_that_may_be_chance_states_how_many_contexts_are_needed(
    dtype: str, figures: verify.Agreement, needed: int
) -> None:
    assert verify.contexts_needed(figures, dtype) == needed
    advice = verify.describe_small_sample(figures, dtype)
    assert advice.endswith(f"--verify_contexts={needed}") if needed else advice == ""


@pytest.mark.parametrize("allowed", sorted({*verify.MAX_TIES.values(), 0.001}))
def test_the_needed_contexts_decide(allowed: float) -> None:
    """From the stated number on, half the allowed share exceeds it with a probability of at most 5 % (scipy)."""
    enough = round(verify.DECISIVE / allowed)
    contexts = np.arange(1, 3 * enough)
    exceeded = stats.binom.sf(np.floor(allowed * contexts + 1e-9), contexts, allowed / 2)
    assert (exceeded[enough - 1 :] <= verify.CHANCE).all()
    assert (exceeded[: enough // 2] > verify.CHANCE).any()


@given(st.integers(0, 2**32 - 1), st.floats(0, 3), st.integers(2, 9))
@settings(max_examples=50)
def test_a_top1_that_changes_is_a_tie(seed: int, size: float, slots: int) -> None:
    """If no logit moves by more than d, no top-1 with a margin over 2 d changes."""
    random = np.random.default_rng(seed)
    reference = random.standard_normal((40, slots)).astype(np.float32)
    noise = random.uniform(-size, size, reference.shape).astype(np.float32)
    compared = Comparison()
    compared.add(reference, reference + noise)
    found = compared.agreement()
    assert found.top1 >= 1 - found.ties
    assert found.ties == 1 or found.top1_outside_ties == 1


def test_every_bucket_has_contexts_and_joined_ones_are_counted() -> None:
    rows = [[i] * (i % 4 + 1) for i in range(1, 500)]  # 1 to 4 tokens: the bucket of 8 is empty
    chosen = samples.choose(iter(rows), BUCKETS, 300, [])
    assert (chosen.real, chosen.made) == ({4: 300}, {8: 100})
    assert len(chosen.rows) == 400
    assert all(5 <= len(row) <= 8 for row in chosen.rows[300:])
    assert chosen.rows[:300] == rows[:300]


def test_rare_lengths_are_searched_for() -> None:
    rows = [[1] * (7 if i % 15 == 14 else 2) for i in range(1500)]
    chosen = samples.choose(iter(rows), BUCKETS, 100, [])
    assert (chosen.real, chosen.made) == ({4: 50, 8: 50}, {})
    few = samples.choose(iter([[1] * 6, [2] * 3]), BUCKETS, 100, [])
    assert (few.real, few.made) == ({4: 1, 8: 1}, {4: 49, 8: 49})


def test_no_contexts_are_refused() -> None:
    with pytest.raises(UserError, match="there are no contexts"):
        samples.choose(iter([[], []]), BUCKETS, 10, [])


def test_ids_that_no_context_has_form_contexts() -> None:
    chosen = samples.choose(iter([[3, 4, 5], [9]]), BUCKETS, 2, range(20))
    missing = [id_ for id_ in range(20) if id_ not in (3, 4, 5, 9)]
    assert (chosen.real, chosen.made) == ({4: 2}, {8: 3})
    assert chosen.rows[-2:] == [missing[:8], missing[8:]]
