"""Lines, trends, mixtures and equivalents: what is said beside the laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxtempl.scaling.laws import catalog, fitting, mixtures, regression, trends
from jaxtempl.scaling.laws.fitting import Data, Value
from jaxtempl.scaling.laws.known import KNOWN

X = np.linspace(1.0, 4.0, 12)
SIZE = np.repeat([0, 1, 2], 12)


def test_a_line_is_scipys_and_its_interval_holds_the_truth() -> None:
    held = 0
    for seed in range(60):
        y = 0.5 + 0.8 * X + np.random.default_rng(seed).normal(0, 0.05, len(X))
        found = regression.line(X, y)
        assert found
        assert found.slope.value == pytest.approx(stats.linregress(X, y).slope)
        held += found.slope.low <= 0.8 <= found.slope.high
    assert held >= stats.binom.ppf(0.001, 60, fitting.LEVEL)
    assert regression.line(X[:2], X[:2]) is None
    assert regression.line(np.ones(5), X[:5]) is None


def test_one_line_for_all_sizes_is_told_from_a_line_a_size() -> None:
    x, random = np.tile(X, 3), np.random.default_rng(0)
    noise = random.normal(0, 0.02, len(x))
    one = regression.one_line(x, 0.5 + 0.8 * x + noise, SIZE)
    apart = regression.one_line(x, 0.5 + 0.8 * x + 0.2 * SIZE + noise, SIZE)
    assert one
    assert apart
    assert one.p > 0.01 > 1e-6 > apart.p
    assert regression.one_line(X, X, np.zeros(12, int)) is None


def test_one_curve_in_compute_is_told_from_a_curve_a_size() -> None:
    compute, random = np.tile(np.geomspace(1e11, 1e13, 12), 3)[:, None], np.random.default_rng(0)
    law, theta = catalog.IN_COMPUTE, np.array([0.2, 5.0, 0.2])
    own, noise = law.log(theta, compute)[0], random.normal(0, 0.005, 36)
    groups = np.arange(36)
    one = regression.one_curve(law, Data(compute, np.exp(own + noise), groups), SIZE)
    apart = regression.one_curve(law, Data(compute, np.exp(own + 0.1 * SIZE + noise), groups), SIZE)
    assert one
    assert apart
    assert one.p > 0.01 > 1e-6 > apart.p


@given(st.permutations(range(8)))
def test_a_trend_is_sure_only_where_the_order_is(order: list[int]) -> None:
    found = trends.trend(np.arange(8.0), np.array(order, float))
    exact = stats.kendalltau(np.arange(8), order)
    assert found.tau == pytest.approx(exact.statistic)
    sure = exact.pvalue < 0.05
    assert found.direction == ("neither" if not sure else "rises" if exact.statistic > 0 else "falls")


def test_loss_that_improves_without_accuracy_is_flagged() -> None:
    tokens, up, flat = (
        np.arange(1.0, 9),
        np.linspace(0.3, 0.5, 8),
        np.array([0.4, 0.41, 0.39, 0.4, 0.42, 0.38, 0.41, 0.4]),
    )
    loss = np.linspace(3, 2, 8)
    assert trends.misaligned(tokens, loss, flat)
    assert not trends.misaligned(tokens, loss, up)
    assert not trends.misaligned(tokens, loss[::-1], flat)


def general_fit() -> fitting.Fit:
    known = next(k for k in KNOWN if k.law is catalog.MIXTURE)
    theta = known.theta + np.array([0, 0, 0, -3.0, 0, 0, 2.0, 0])  # one that falls as its share grows
    return fitting.Fit(known.law, known.data(0), theta, np.stack([theta] * 3))


def test_the_critical_share_is_where_the_general_loss_meets_the_limit() -> None:
    fit = general_fit()

    def loss(share: float) -> float:
        return fit.predict(np.array([[2e5, 3e6, 1 - share]]))[0].value

    share = mixtures.critical_share(fit, 2e5, 3e6, loss(0.6))
    assert share == pytest.approx(0.6, abs=1e-3)
    assert mixtures.critical_share(fit, 2e5, 3e6, loss(1.0) + 1) == 1.0
    assert mixtures.critical_share(fit, 2e5, 3e6, loss(0.0) - 0.1) is None


def test_forgetting_is_a_line_from_the_base_on() -> None:
    domain, general = np.array([4.0, 3.5, 3.2, 3.0]), np.array([3.0, 3.2, 3.32, 3.4])
    found = mixtures.forgetting(domain, general)
    assert found
    assert (found.slope.value, found.intercept.value) == (pytest.approx(0.4), pytest.approx(0, abs=1e-12))


def curve(scale: float) -> mixtures.Curve:
    tokens = np.geomspace(1e5, 1e7, 20)
    return tokens, 1 + (tokens / scale) ** -0.3


def test_efficiency_is_the_ratio_of_tokens_at_equal_loss_and_has_a_trend_in_size() -> None:
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
    assert mixtures.ratio(curve(100.0), far) == (pytest.approx(1e6 / 1e5), True)
    assert mixtures.ratio(far, curve(100.0)) is None
    alike = {size: curve(100.0) for size in sizes}
    assert mixtures.efficiency(alike, dict.fromkeys(sizes, far)).trend is None


def test_equivalent_tokens_come_to_the_same_loss() -> None:
    theta = np.array([0.2, 4.0, 0.35])
    known = next(k for k in KNOWN if k.law is catalog.IN_TOKENS)
    fit = fitting.Fit(known.law, known.data(0), theta, np.stack([theta] * 3))
    loss = fit.predict(np.array([[2.7e7]]))[0].value
    assert mixtures.equivalent_tokens(fit, Value(loss, loss, loss)) == pytest.approx(2.7e7, rel=1e-3)
    assert mixtures.equivalent_tokens(fit, Value(1.0, 1.0, 1.0)) is None
