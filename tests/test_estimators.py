"""Estimates of experiments: published examples, other libraries, matrix formulas, and error rates under no effect."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import statsmodels.api as sm
import tea_tasting
from scipy import linalg, stats

from jaxtempl.errors import UserError
from jaxtempl.experiments import estimators, randomization
from jaxtempl.experiments.estimators import ClusterSums, Sample

SLEEP = ([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0, 2], [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
REPLIES = ([11, 9, 10, 11, 10, 12, 9, 11, 12, 9], [11, 13, 10, 13, 12, 9, 11, 12, 12, 11])


def drawn(seed: int, advocates: int = 12, by_advocate: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return times, advocates and arms without an effect; advocates differ in volume and speed."""
    random = np.random.default_rng(seed)
    volumes = 2 + random.poisson(random.lognormal(1, 0.8, advocates))
    clusters = np.repeat(np.arange(advocates), volumes)
    arms = (
        random.permutation(np.arange(advocates) % 2)[clusters] if by_advocate else random.integers(0, 2, clusters.size)
    )
    return (
        np.exp(2.5 + 0.3 * random.normal(size=advocates)[clusters] + 0.6 * random.normal(size=clusters.size)),
        clusters,
        arms,
    )


@pytest.mark.parametrize(
    ("pair", "t", "df", "p", "interval"),
    [
        (SLEEP, -1.8608, 17.776, 0.07939, (-3.3654832, 0.2054832)),  # R, ?t.test, data `sleep`
        (REPLIES, -1.8325, 17.9, 0.08356, (-2.1469104, 0.1469104)),  # R's output in a stats.stackexchange answer
    ],
)
def test_welch_gives_the_published_examples(
    pair: tuple[list[float], list[float]], t: float, df: float, p: float, interval: tuple[float, float]
) -> None:
    second, first = (np.array(values, float) for values in pair)
    found = estimators.naive_welch(Sample.of(first), Sample.of(second))
    assert found.value / found.se == pytest.approx(t, abs=1e-4)
    assert found.df == pytest.approx(df, abs=0.05)
    assert found.p == pytest.approx(p, rel=1e-3)
    assert (found.low, found.high) == pytest.approx(interval, abs=1e-6)
    assert found.p == pytest.approx(float(stats.ttest_ind(second, first, equal_var=False).pvalue))


def petersen() -> np.ndarray:
    """Return Petersen's firms, years, x and y, which statsmodels ships."""
    spec = importlib.util.find_spec("statsmodels")
    assert spec is not None
    assert spec.origin is not None
    return np.loadtxt(Path(spec.origin).parent / "stats" / "tests" / "test_data.txt")


@pytest.mark.parametrize(("cluster", "errors"), [(0, (0.0670, 0.0506)), (1, (0.0234, 0.0334))], ids=["firm", "year"])
def test_clustered_errors_equal_those_petersen_published(cluster: int, errors: tuple[float, float]) -> None:
    """A coefficient is a ratio of sums once the other regressor is partialled out (Frisch, Waugh and Lovell)."""
    data = petersen()
    x, y, one = data[:, 2], data[:, 3], np.ones(len(data))
    for regressor, other, coefficient, error in ((one, x, 0.02967972, errors[0]), (x, one, 1.03483344, errors[1])):
        z, left = (each - other * (other @ each) / (other @ other) for each in (regressor, y))
        groups = (data[:, cluster] - 1).astype(int)
        sums = (np.bincount(groups, each)[:, None] for each in (z * left, z * z))
        found = estimators.mean(ClusterSums(*sums))
        assert found.value == pytest.approx(coefficient, abs=1e-7)
        assert found.se == pytest.approx(error, abs=1e-4)


def test_single_interactions_as_clusters_give_hc2_and_welch() -> None:
    times, _, arms = drawn(1)
    sums = estimators.sums_by_cluster(times, np.arange(times.size), arms)
    found = estimators.difference(sums)
    fitted = sm.OLS(times, sm.add_constant(arms)).fit(cov_type="HC2")
    assert (found.value, found.se) == pytest.approx((fitted.params[1], fitted.bse[1]))
    welch = estimators.naive_welch(Sample.of(times[arms == 0]), Sample.of(times[arms == 1]))
    assert found.se == pytest.approx(welch.se)


def test_many_clusters_give_the_clustered_error_of_statsmodels() -> None:
    times, clusters, arms = drawn(2, advocates=2000)
    found = estimators.difference(estimators.sums_by_cluster(times, clusters, arms))
    fitted = sm.OLS(times, sm.add_constant(arms)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert found.value == pytest.approx(fitted.params[1])
    assert found.se == pytest.approx(fitted.bse[1], rel=0.01)


def test_many_advocates_give_the_ratio_and_cuped_of_tea_tasting() -> None:
    random = np.random.default_rng(5)
    clusters, speeds = np.repeat(np.arange(3000), random.poisson(6, 3000) + 1), random.lognormal(0, 0.4, 3000)
    arms, earlier = random.permutation(np.arange(3000) % 2), 10 * speeds + random.normal(0, 2, 3000)
    times = 10 * speeds[clusters] * random.lognormal(0, 0.5, clusters.size) - 0.5 * arms[clusters]
    sums = estimators.sums_by_cluster(times, clusters, arms[clusters])
    totals, weights = sums.totals.sum(1), sums.weights.sum(1)
    columns = {"variant": arms, "time": totals, "count": weights, "earlier": weights * earlier, "before": weights + 0.0}
    found = tea_tasting.Experiment(
        plain=tea_tasting.RatioOfMeans("time", "count"),
        cuped=tea_tasting.RatioOfMeans("time", "count", numer_covariate="earlier", denom_covariate="before"),
    ).analyze(pa.table(columns))
    adjusted = estimators.cuped(sums, earlier)
    assert adjusted.variance_kept < 0.6
    for ours, theirs in ((estimators.difference(sums), found["plain"]), (adjusted.estimate, found["cuped"])):
        bounds = (theirs.effect_size_ci_lower, theirs.effect_size_ci_upper)
        assert ours.value == pytest.approx(theirs.effect_size, abs=0.02)
        assert (ours.low, ours.high) == pytest.approx(bounds, abs=0.02)


@pytest.mark.parametrize("by_advocate", [False, True])
def test_variance_and_degrees_of_freedom_equal_the_matrix_formulas(by_advocate: bool) -> None:
    """CR2 and Satterthwaite's degrees of freedom, as Imbens and Kolesar (2016, section 4) write them."""
    times, clusters, arms = drawn(3, by_advocate=by_advocate)
    design = np.column_stack([1 - arms, arms]).astype(float)
    inverse, contrast = np.linalg.inv(design.T @ design), np.array([-1.0, 1.0])
    maker = np.eye(times.size) - design @ inverse @ design.T
    vectors, variance = [], 0.0
    for cluster in np.unique(clusters):
        at = np.flatnonzero(clusters == cluster)
        adjustment = linalg.inv(linalg.sqrtm(maker[np.ix_(at, at)]))
        vector = adjustment @ design[at] @ inverse @ contrast
        variance += float((maker @ times)[at] @ vector) ** 2
        vectors.append(maker[:, at] @ vector)
    products = np.array(vectors) @ np.array(vectors).T
    found = estimators.difference(estimators.sums_by_cluster(times, clusters, arms))
    assert found.se**2 == pytest.approx(variance)
    assert found.df == pytest.approx(np.trace(products) ** 2 / np.trace(products @ products))
    assert found.df < 11


def test_a_ratio_and_a_log_ratio_agree_with_the_jackknife_over_clusters() -> None:
    times, clusters, arms = drawn(4, advocates=400)
    times = times * (1 + 2 * arms)
    case_times = 100 + 5 * times + np.random.default_rng(4).exponential(50, times.size)
    sums = estimators.sums_by_cluster(times, clusters, arms, case_times)
    for estimate, formula in (
        (estimators.difference(sums), lambda r: r[1] - r[0]),
        (estimators.log_ratio(sums), lambda r: math.log(r[1] / r[0])),
    ):
        totals, weights = sums.totals.sum(0) - sums.totals, sums.weights.sum(0) - sums.weights
        left_out = np.array([formula(ratios) for ratios in totals / weights])
        expected = math.sqrt(399 / 400 * ((left_out - left_out.mean()) ** 2).sum())
        assert estimate.value == pytest.approx(formula(sums.totals.sum(0) / sums.weights.sum(0)))
        assert estimate.se == pytest.approx(expected, rel=0.02)


def test_cuped_keeps_the_effect_and_the_variance_that_the_earlier_mean_does_not_explain() -> None:
    random = np.random.default_rng(5)
    speeds = random.normal(20, 5, 300)
    clusters, arms = np.repeat(np.arange(300), 8), np.repeat(random.permutation(np.arange(300) % 2), 8)
    times = speeds[clusters] + 2 * arms + random.normal(0, 4, clusters.size)
    sums = estimators.sums_by_cluster(times, clusters, arms)
    earlier = speeds + random.normal(0, 1, 300)
    found = estimators.cuped(sums, earlier)
    means = sums.totals.sum(1) / sums.weights.sum(1)
    slope = np.cov(means, earlier)[0, 1] / earlier.var(ddof=1)
    assert found.theta == pytest.approx(slope)
    adjusted = means - slope * (earlier - earlier.mean())
    by_arm = [adjusted[arms[::8] == arm] for arm in (0, 1)]
    assert found.estimate.value == pytest.approx(by_arm[1].mean() - by_arm[0].mean())
    assert found.variance_kept == pytest.approx(1 - np.corrcoef(means - 2 * arms[::8], earlier)[0, 1] ** 2, rel=0.05)
    assert found.estimate.low < 2 < found.estimate.high


def test_cuped_leaves_new_advocates_unadjusted() -> None:
    times, clusters, arms = drawn(6, advocates=40)
    sums = estimators.sums_by_cluster(times, clusters, arms)
    earlier = np.where(np.arange(40) < 20, sums.totals.sum(1) / sums.weights.sum(1), np.nan)
    assert estimators.cuped(sums, earlier).variance_kept < 1
    shuffled = np.random.default_rng(0).permutation(earlier)
    assert estimators.cuped(sums, shuffled).theta < estimators.cuped(sums, earlier).theta


@pytest.mark.parametrize("by_advocate", [False, True])
def test_two_equal_arms_differ_in_5_percent_of_experiments(by_advocate: bool) -> None:
    """Binomial bounds at 1 in 1,000 for 400 experiments of 30 advocates; the naive test fails them by far."""
    clustered, naive = 0, 0
    for seed in range(400):
        times, clusters, arms = drawn(seed, 30, by_advocate)
        clustered += estimators.difference(estimators.sums_by_cluster(times, clusters, arms)).p < 0.05
        naive += estimators.naive_welch(*(Sample.of(times[arms == arm]) for arm in (0, 1))).p < 0.05
    low, high = stats.binom.ppf([0.0005, 0.9995], 400, 0.05)
    assert low <= clustered <= high
    assert not by_advocate or naive > high


@pytest.mark.parametrize("count", [12, 400])
def test_rerandomisation_rejects_two_equal_arms_in_5_percent_of_experiments(count: int) -> None:
    found = 0
    for seed in range(200):
        times, clusters, arms = drawn(seed, count // 2 if count > 12 else count, by_advocate=True)
        totals, weights = (np.bincount(clusters, each) for each in (times, None))
        treated = np.bincount(clusters, arms) > 0
        found += randomization.rerandomize(totals, weights.astype(float), treated, draws=199, seed=seed).p <= 0.05
    low, high = stats.binom.ppf([0.0005, 0.9995], 200, 0.05)
    assert low <= found <= high


def test_rerandomisation_is_the_exact_test_of_every_assignment() -> None:
    random = np.random.default_rng(7)
    values, treated = random.normal(size=12) + np.arange(12) / 6, np.arange(12) % 2 == 1
    exact = stats.permutation_test(
        (values[treated], values[~treated]),
        lambda a, b: abs(a.mean() - b.mean()) / math.sqrt(a.var() / len(a) + b.var() / len(b)),
        alternative="greater",
        n_resamples=np.inf,
    )
    found = randomization.rerandomize(values, np.ones(12), treated, draws=5000)
    assert found.p == pytest.approx(exact.pvalue, abs=0.025)
    assert abs(found.statistic) == pytest.approx(exact.statistic)
    apart = values + 100 * treated * np.linspace(1, 2, 12)
    few = randomization.rerandomize(np.concatenate([apart, apart]), np.ones(24), np.tile(treated, 2), draws=99)
    assert few.p == 1 / 100  # never 0: the observed assignment is one of the draws


def test_times_are_capped_and_counted() -> None:
    times, share = estimators.cap_times(np.array([1.0, 300, 301, 999]), 300.0)
    assert (times.tolist(), share) == ([1, 300, 300, 300], 0.5)


def test_equal_clusters_are_all_effective_and_one_large_one_is_alone() -> None:
    assert estimators.effective_clusters(ClusterSums(np.ones((9, 2)), np.ones((9, 2)))) == pytest.approx(9)
    weights = np.array([[1000.0, 0], [0, 1], [0, 1]])
    assert estimators.effective_clusters(ClusterSums(weights, weights)) == pytest.approx(1, abs=0.01)


def sums_of(totals: list[list[float]], weights: list[list[float]]) -> ClusterSums:
    return ClusterSums(np.array(totals), np.array(weights))


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        (sums_of([[1, 0], [2, 0], [0, 3]], [[1, 0], [1, 0], [0, 1]]), "the arms have 2 and 1 clusters"),
        (sums_of([[1, 1], [1, 1]], [[1, 1], [1, 1]]), "there is no variance; check the times"),
        (sums_of([[math.nan, 1], [1, 2]], [[1, 1], [1, 1]]), "not finite; remove interactions without a time"),
        (sums_of([[1, 1], [1, 2]], [[-1, 1], [1, 1]]), "a sum is negative"),
    ],
)
def test_sums_without_a_variance_are_refused_in_words(sums: ClusterSums, message: str) -> None:
    for estimate in (estimators.difference, estimators.log_ratio):
        with pytest.raises(UserError, match=message):
            estimate(sums)


def test_other_impossible_estimates_are_refused_in_words() -> None:
    sums = estimators.sums_by_cluster(*drawn(8))
    with pytest.raises(UserError, match="CUPED needs an earlier period"):
        estimators.cuped(sums, np.full(12, np.nan))
    with pytest.raises(UserError, match="CUPED needs an earlier period"):
        estimators.cuped(sums, np.full(12, 3.0))
    with pytest.raises(UserError, match="a logarithm needs a positive one"):
        estimators.log_ratio(ClusterSums(-sums.totals, sums.weights))
    with pytest.raises(UserError, match="a variance needs two or more"):
        Sample.of(np.ones(1))
    with pytest.raises(UserError, match="no variance to test by"):
        estimators.naive_welch(Sample(3, 1, 0), Sample(3, 1, 0))
    with pytest.raises(UserError, match="1 of 3 units are treated; a test needs two or more in each arm"):
        randomization.rerandomize(np.ones(3), np.ones(3), np.arange(3) == 1)
    with pytest.raises(UserError, match="there is no variance"):
        randomization.rerandomize(np.ones(4), np.ones(4), np.arange(4) < 2)
