"""Tests of the evaluation metrics: against scikit-learn, by hand, and by their statistical properties."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from sklearn.metrics import log_loss, top_k_accuracy_score

from jaxtempl.evaluation import metrics
from jaxtempl.evaluation.metrics import Bootstrap
from jaxtempl.specs.interval import Interval

CLASSES = 7


def drawn(contexts: int = 500, seed: int = 0, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, and labels drawn from softmax(logits)."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, scale, (contexts, CLASSES)).astype(np.float32)
    return logits, (logits + random.gumbel(size=logits.shape)).argmax(axis=1)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_equals_scikit_learns(k: int) -> None:
    logits, slots = drawn()
    expected = top_k_accuracy_score(slots, logits, k=k, labels=range(CLASSES))
    assert (metrics.ranks(logits, slots) < k).mean() == pytest.approx(expected)


def test_cross_entropy_equals_scikit_learns() -> None:
    logits, slots = drawn()
    probability = special.softmax(logits.astype(np.float64), axis=1)
    expected = log_loss(slots, probability, labels=range(CLASSES))
    assert metrics.losses(logits, slots).mean() == pytest.approx(expected, rel=1e-9)


def test_a_label_outside_the_classes_is_wrong_and_has_no_loss() -> None:
    logits, slots = np.zeros((3, 4), np.float32), np.array([-1, 0, 3])
    assert metrics.ranks(logits, slots).tolist() == [metrics.MISS, 0, 3]
    assert np.isnan(metrics.losses(logits, slots)).tolist() == [True, False, False]
    found = metrics.classification(logits, slots, Bootstrap(np.arange(3), 0), 1.0)
    assert found["top1"].value == pytest.approx(1 / 3)
    assert found["cross_entropy"].value == pytest.approx(np.log(4))


def test_cross_entropy_without_labels_in_the_classes_is_nan() -> None:
    found = metrics.classification(np.zeros((3, 4), np.float32), np.full(3, -1), Bootstrap(np.arange(3), 0), 1.0)
    assert np.isnan(found["cross_entropy"]).all()
    assert found["top5"] == (0.0, 0.0, 0.0)


logit_arrays = arrays.arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 6)), elements=st.integers(-3, 3))


@given(logit_arrays, st.randoms(use_true_random=False))
def test_ranks_agree_with_top_for_equal_logits(logits: np.ndarray, random: st.DrawFn) -> None:
    slots = np.array([random.randrange(-1, logits.shape[1]) for _ in logits])
    order = metrics.top(logits, logits.shape[1])
    for row, slot, rank in zip(order, slots, metrics.ranks(logits, slots), strict=True):
        assert (row.tolist().index(slot) if slot >= 0 else metrics.MISS) == rank


@given(logit_arrays, st.floats(-5, 5))
def test_a_constant_added_to_a_row_changes_no_loss(logits: np.ndarray, constant: float) -> None:
    slots = np.zeros(len(logits), int)
    np.testing.assert_allclose(metrics.losses(logits + constant, slots), metrics.losses(logits, slots), atol=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_recovered(temperature: float) -> None:
    logits, slots = drawn(20_000)
    assert metrics.fit_temperature(logits * temperature, slots) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_ignores_labels_outside_the_classes_and_is_1_without_labels() -> None:
    logits, slots = drawn()
    more = np.concatenate([logits, 100 * np.ones_like(logits)])
    with_unknown = metrics.fit_temperature(more, np.concatenate([slots, np.full(len(slots), -1)]))
    assert with_unknown == metrics.fit_temperature(logits, slots)
    assert metrics.fit_temperature(logits[:0], slots[:0]) == 1.0


def test_the_calibration_error_equals_a_hand_calculation() -> None:
    probability, correct = np.array([0.9, 0.92, 0.3, 1.0]), np.array([True, False, True, True])
    sums = metrics.reliability(probability, correct)
    assert sums.contexts.sum() == 4
    assert metrics.calibration_error(sums) == pytest.approx((abs(1 - 1.82) + 0.7 + 0) / 4)


def test_true_probabilities_are_calibrated_and_doubled_logits_are_not() -> None:
    logits, slots = drawn(20_000)
    honest, bold = (
        metrics.reliability(metrics.top_probability(logits, t), logits.argmax(axis=1) == slots) for t in (1.0, 0.5)
    )
    assert metrics.calibration_error(honest) < 0.02
    assert metrics.calibration_error(bold) > 0.08


def test_the_bootstrap_resamples_whole_cases() -> None:
    """Of two cases, one is all hits and one all misses, so only the shares 0, 1/2 and 1 are possible."""
    values, cases = np.array([1.0] * 10 + [0.0] * 10), np.array([7] * 10 + [3] * 10)
    seen: set[float] = set()

    def share(sums: np.ndarray) -> np.ndarray:
        found = sums[..., 0] / sums[..., 1]
        seen.update(np.atleast_1d(found).tolist())
        return found

    assert Bootstrap(cases, 0).interval(np.stack([values, np.ones(20)], axis=1), share) == (0.5, 0.0, 1.0)
    assert seen == {0.0, 0.5, 1.0}


def test_the_confidence_interval_has_a_coverage_of_about_95_percent() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        rates = random.beta(2, 2, size=60)  # contexts of a case share its rate; the expected rate is 1/2
        hits = (random.random((60, 8)) < rates[:, None]).astype(float).ravel()
        value = Bootstrap(np.repeat(np.arange(60), 8), trial).mean(hits)
        covered += value.low <= 0.5 <= value.high
    assert 180 <= covered <= 198


def test_the_confidence_interval_depends_on_the_seed_only() -> None:
    logits, slots = drawn(100)
    first, again, other = (
        metrics.classification(logits, slots, Bootstrap(np.arange(100) // 4, s), 1.3) for s in (0, 0, 1)
    )
    assert first == again
    assert first["cross_entropy"] != other["cross_entropy"]
    assert all(value.low <= value.value <= value.high for value in first.values())


def test_bits_a_byte_count_all_tokens() -> None:
    """8 bits a token at 4 bytes a token are 2 bits a byte, including the tokens that no row predicts."""
    tokens = np.array([10.0, 30.0])
    found = metrics.language_model((tokens - 1) * 8 * np.log(2), tokens - 1, tokens, tokens * 4, seed=0)
    assert found["bits_a_byte"] == pytest.approx((2.0, 2.0, 2.0))
    assert found["loss"].value == pytest.approx(8 * np.log(2))


def test_an_interval_formats_as_value_low_high() -> None:
    assert f"{Interval(0.5, 0.25, 1.0)}" == "0.500 [0.250, 1.000]"
    assert f"{Interval(0.5, 0.25, 1.0):.0%}" == "50% [25%, 100%]"
    undefined = Interval.from_json({"value": None, "low": None, "high": None})
    assert f"{undefined}" == "– [–, –]"  # noqa: RUF001
