"""Regressions, trend tests, mixtures and equivalent tokens recover the truth that generated the data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxtempl.scaling.laws import bootstrap, catalog, fitting, mann_kendall, mixtures, regression
from jaxtempl.scaling.laws.fitting import Observations
from jaxtempl.scaling.laws.ground_truth import GROUND_TRUTHS

X = np.linspace(1.0, 4.0, 12)
SIZE = np.repeat([0, 1, 2], 12)


def test_a_regression_equals_scipys_and_its_interval_covers_the_truth() -> None:
    covered = 0
    for seed in range(60):
        y = 0.5 + 0.8 * X + np.random.default_rng(seed).normal(0, 0.05, len(X))
        found = regression.fit_line(X, y)
        assert found
        assert found.slope.value == pytest.approx(stats.linregress(X, y).slope)
        covered += found.slope.low <= 0.8 <= found.slope.high
    assert covered >= stats.binom.ppf(0.001, 60, bootstrap.LEVEL)
    assert regression.fit_line(X[:2], X[:2]) is None
    assert regression.fit_line(np.ones(5), X[:5]) is None


def test_a_common_line_is_distinguished_from_a_line_for_each_size() -> None:
    x, random = np.tile(X, 3), np.random.default_rng(0)
    noise = random.normal(0, 0.02, len(x))
    common = regression.compare_lines(x, 0.5 + 0.8 * x + noise, SIZE)
    separate = regression.compare_lines(x, 0.5 + 0.8 * x + 0.2 * SIZE + noise, SIZE)
    assert common
    assert separate
    assert common.p > 0.01 > 1e-6 > separate.p
    assert regression.compare_lines(X, X, np.zeros(12, int)) is None


def test_a_common_curve_is_distinguished_from_a_curve_for_each_size() -> None:
    compute, random = np.tile(np.geomspace(1e11, 1e13, 12), 3)[:, None], np.random.default_rng(0)
    law, theta = catalog.IN_COMPUTE, np.array([0.2, 5.0, 0.2])
    log_loss, noise = law.log(theta, compute)[0], random.normal(0, 0.005, 36)
    groups = np.arange(36)
    common = regression.compare_laws(law, Observations(compute, np.exp(log_loss + noise), groups), SIZE)
    separate = regression.compare_laws(law, Observations(compute, np.exp(log_loss + 0.1 * SIZE + noise), groups), SIZE)
    assert common
    assert separate
    assert common.p > 0.01 > 1e-6 > separate.p


@given(st.permutations(range(8)))
def test_a_trend_is_reported_only_where_it_is_significant(order: list[int]) -> None:
    found = mann_kendall.trend(np.arange(8.0), np.array(order, float))
    exact = stats.kendalltau(np.arange(8), order)
    assert found.tau == pytest.approx(exact.statistic)
    sure = exact.pvalue < 0.05
    assert found.direction == ("neither" if not sure else "rises" if exact.statistic > 0 else "falls")


def test_a_loss_that_improves_without_accuracy_is_flagged() -> None:
    tokens, up, flat = (
        np.arange(1.0, 9),
        np.linspace(0.3, 0.5, 8),
        np.array([0.4, 0.41, 0.39, 0.4, 0.42, 0.38, 0.41, 0.4]),
    )
    loss = np.linspace(3, 2, 8)
    assert mann_kendall.is_misaligned(tokens, loss, flat)
    assert not mann_kendall.is_misaligned(tokens, loss, up)
    assert not mann_kendall.is_misaligned(tokens, loss[::-1], flat)


def general_fit() -> fitting.Fit:
    truth = next(k for k in GROUND_TRUTHS if k.law is catalog.MIXTURE)
    theta = truth.theta + np.array([0, 0, 0, -3.0, 0, 0, 2.0, 0])  # a loss that falls as its share grows
    return fitting.Fit(truth.law, truth.sample(0), theta, np.stack([theta] * 3))


def test_the_critical_share_is_where_the_general_loss_meets_the_limit() -> None:
    fit = general_fit()

    def loss(share: float) -> float:
        return fit.predict(np.array([[2e5, 3e6, 1 - share]]))[0].value

    share = mixtures.critical_share(fit, 2e5, 3e6, loss(0.6))
    assert share == pytest.approx(0.6, abs=1e-3)
    assert mixtures.critical_share(fit, 2e5, 3e6, loss(1.0) + 1) == 1.0
    assert mixtures.critical_share(fit, 2e5, 3e6, loss(0.0) - 0.1) is None


def test_forgetting_is_a_regression_that_starts_at_the_base_model() -> None:
    domain, general = np.array([4.0, 3.5, 3.2, 3.0]), np.array([3.0, 3.2, 3.32, 3.4])
    found = mixtures.forgetting(domain, general)
    assert found
    assert (found.slope.value, found.intercept.value) == (pytest.approx(0.4), pytest.approx(0, abs=1e-12))


def curve(scale: float) -> mixtures.LossCurve:
    tokens = np.geomspace(1e5, 1e7, 20)
    return tokens, 1 + (tokens / scale) ** -0.3


def test_efficiency_is_the_ratio_of_tokens_at_equal_loss_with_a_trend_in_size() -> None:
    sizes = (1e5, 1e6, 1e7)
    special = {size: curve(100.0) for size in sizes}
    general = {size: curve(100.0 * 2 * (size / 1e5) ** 0.25) for size in sizes}
    found = mixtures.efficiency(special, general)
    assert not any(one.at_least for one in found.by_size.values())
    exact = {size: 2 * (size / 1e5) ** 0.25 for size in sizes}
    assert {size: one.value for size, one in found.by_size.items()} == pytest.approx(exact, rel=0.02)
    assert found.trend
    assert found.trend.slope.value == pytest.approx(0.25, abs=0.01)
    far = (np.array([1e5, 1e6]), np.array([9.0, 8.0]))
    assert mixtures.token_ratio(curve(100.0), far) == (pytest.approx(1e6 / 1e5), True)
    assert mixtures.token_ratio(far, curve(100.0)) is None
    equal = {size: curve(100.0) for size in sizes}
    assert mixtures.efficiency(equal, dict.fromkeys(sizes, far)).trend is None


def test_equivalent_tokens_reach_the_same_loss() -> None:
    theta = np.array([np.exp(0.2), 4.0, 0.35])
    truth = next(k for k in GROUND_TRUTHS if k.law is catalog.IN_TOKENS)
    fit = fitting.Fit(truth.law, truth.sample(0), theta, np.stack([theta] * 3))
    loss = fit.predict(np.array([[2.7e7]]))[0].value
    assert mixtures.equivalent_tokens(fit, loss) == pytest.approx(2.7e7, rel=1e-3)
    assert mixtures.equivalent_tokens(fit, 1.0) is None
