"""Trends: published examples, pymannkendall and scipy, every permutation of a short series, refusals in words."""

import itertools

import numpy as np
import pymannkendall
import pytest
from scipy import stats

from jaxtempl.errors import UserError
from jaxtempl.experiments import trend

HOLY_CROSS = [12.9, 14.8, 13.2, 15.7, 13.8, 15.6, 12.9, 11.0, 17.3, 15.9, 19.0, 18.3, 20.1, 21.7]
NEGATIVE = (
    "0.35257984 0.38692909 0.39669828 0.36296244 0.42035612 0.39374964 0.41100085 0.43182076 0.40815853 0.45394297 "
    "0.41584767 0.47399517"
)
# Monthly rainfall of pyMannKendall's tests, without its 8 missing months.
RAINFALL = """
32 20 25 189 240 193 379 278 301 0 0 82 0 4 121 234 360 262 120 30 11 1 7 3 31 31 355 102 248 274 308 5 26 11 16 6
48 388 539 431 272 404 186 0 2 0 4 1 54 272 459 235 164 365 135 2 4 0 128 210 163 446 225 462 467 19 13 0 3 17 132
178 338 525 623 145 31 19 3 0 29 25 87 259 756 486 180 292 43 92 1 0 16 2 0 130 253 594 111 273 30 0 4 0 27 24 41
292 378 499 265 320 227 4 0 4 14 8 48 416 240 404 207 733 105 0 112 0 14 0 30 140 202 289 159 424 106 3 0 65 3 14 58
268 466 432 266 240 95 1 0 10 26 4 114 94 289 173 208 263 156 5 0 16 16 14 0 111 475 534 432 471 117 70 1 3 28 7 401
184 283 338 171 335 176 0 0 10 11 9 140 102 208 298 245 220 29 2 27 10 13 26 84 143 367 749 563 283 353 10 0 0 0 0 9
246 265 343 429 168 133 17 0 18 35 76 158 272 250 190 289 466 84 0 0 0 0 0 22 217 299 185 115 344 203 8 0 5 284 123
254 476 496 326 27 20 0 4 53 72 113 214 364 219 220 156 264 0 13 0 0 45 90 137 638 529 261 206 251 0 0 5 9 58 72 138
130 471 328 356 523 0 1 0 0 12 143 193 184 192 138 174 69 1 0 0 18 25 28 92 732 320 256 302 131 15 0 27 0 22 20 213
393 474 374 109 159 0 0 0 3 3 49 205 128 194 570 169 89 0 0 0 0 0 26 185 286 92 225 244 190 3 20
"""


def series(text: str) -> np.ndarray:
    return np.array(text.split(), float)


def test_the_example_computed_by_hand_is_reproduced() -> None:
    """Mann-Kendall by hand at mathcs.holycross.edu/~little/Montserrat; one tie."""
    found = trend.mann_kendall(np.array(HOLY_CROSS))
    assert (found.s, found.variance) == pytest.approx((54, 332.6666667))
    assert (found.z, found.p) == pytest.approx((2.9058, 0.0036627), abs=1e-4)


def test_monthly_rainfall_with_many_ties_is_reproduced() -> None:
    """Values of pyMannKendall's tests, which its authors hold to R's modifiedmk, fume, rkt and trend."""
    values = series(RAINFALL)
    found = trend.mann_kendall(values)
    assert (found.s, found.variance) == pytest.approx((-1959, 4889800.333333333))
    assert (found.z, found.p) == pytest.approx((-0.8854562842589916, 0.37591058740506833))
    assert trend.sen_slope(values) == pytest.approx(-0.0064516129032258064)
    corrected = trend.hamed_rao(values)
    assert (corrected.variance, corrected.z) == pytest.approx((257403.38678462413, -3.859273515045842))
    assert corrected.p == pytest.approx(0.00011372459883540742)
    three = trend.hamed_rao(values, lag=3)
    assert (three.variance, three.p) == pytest.approx((14226812.425138814, 0.603684460662274))


def test_the_autocorrelations_give_the_published_variance_of_yue_and_wang() -> None:
    """Yue and Wang (2004) scale the variance by the autocorrelations of all lags, of the series without its slope.

    The published slope and variance are those of the series with its missing months.
    """
    values = series(RAINFALL)
    lags = np.arange(len(values))
    correlations = trend.autocorrelations(values + 0.006369426751592357 * lags)
    factor = 1 + 2 * float(((1 - lags / len(values)) * correlations)[1:].sum())
    plain = trend.mann_kendall(values)
    assert plain.variance * factor == pytest.approx(551950.4269211816, rel=1e-6)
    assert (plain.s + 1) / np.sqrt(plain.variance * factor) == pytest.approx(-2.6354977553857504, rel=1e-6)


def test_a_negative_variance_is_refused_in_words() -> None:
    """The series of issue 29 of pyMannKendall, which returns NaN for it."""
    values = series(NEGATIVE)
    plain = trend.mann_kendall(values)
    assert (plain.s, plain.variance, plain.z) == pytest.approx((44, 212.6666667, 2.94861957))
    with pytest.raises(UserError, match=r"variance of Hamed and Rao is negative \(-8.737\) for these 12 points"):
        trend.hamed_rao(values)


@pytest.mark.parametrize("seed", range(5))
def test_random_series_give_the_values_of_pymannkendall(seed: int) -> None:
    values = np.cumsum(np.random.default_rng(seed).normal(size=40)).round(seed % 2 + 1)
    for found, expected in (
        (trend.mann_kendall(values), pymannkendall.original_test(values)),
        (trend.hamed_rao(values, 5), pymannkendall.hamed_rao_modification_test(values, lag=5)),
    ):
        assert (found.s, found.variance, found.z, found.p) == pytest.approx(
            (expected.s, expected.var_s, expected.z, expected.p)
        )


def test_the_variance_with_ties_in_both_is_that_of_every_permutation() -> None:
    by, values = np.array([1.0, 1, 2, 3, 3]), np.array([2.0, 2, 5, 5, 1])
    shuffled = [trend.mann_kendall(np.array(one), by).s for one in itertools.permutations(values)]
    found = trend.mann_kendall(values, by)
    assert found.variance == pytest.approx(np.var(shuffled))
    assert np.mean(shuffled) == pytest.approx(0)
    assert found.tau == pytest.approx(float(stats.kendalltau(values, by).statistic))


def test_many_points_with_ties_give_the_p_value_of_kendalls_tau() -> None:
    random = np.random.default_rng(1)
    by = random.integers(0, 40, 300).astype(float)
    values = (by + random.normal(0, 100, 300)).round(-1)
    expected = stats.kendalltau(by, values, method="asymptotic")
    found = trend.mann_kendall(values, by)
    assert found.tau == pytest.approx(float(expected.statistic))
    assert found.p == pytest.approx(float(expected.pvalue), rel=0.01)  # scipy corrects no continuity


def test_a_bootstrap_over_advocates_equals_the_t_interval_of_a_mean() -> None:
    means = np.random.default_rng(2).normal(5, 1, 80)
    found = trend.bootstrap_interval(lambda weights: float(weights @ means / weights.sum()), 80)
    expected = stats.ttest_1samp(means, 0).confidence_interval()
    assert found.value == pytest.approx(means.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.06)


def test_a_centred_bootstrap_contains_a_correlation_that_resampling_attenuates() -> None:
    random = np.random.default_rng(4)
    truth = random.normal(size=200)
    one, other = (truth + 3 * random.normal(size=(20, 200)) for _ in range(2))

    def correlation(weights: np.ndarray) -> float:
        return float(np.corrcoef(weights @ one, weights @ other)[0, 1])

    plain, centred = (trend.bootstrap_interval(correlation, 20, draws=300, centred=flag) for flag in (False, True))
    assert plain.high < plain.value
    assert centred.low < centred.value < centred.high
    assert centred.high - centred.low == pytest.approx(plain.high - plain.low)


def test_split_half_reliability_is_the_share_of_variance_between_templates() -> None:
    """By classical test theory: variance of the truth over that of the mean of all advocates."""
    random = np.random.default_rng(3)
    ratings = random.normal(0, 1, 200)[None] + random.normal(0, 4, (60, 200))
    found = trend.split_half_reliability(lambda weights: weights @ ratings / weights.sum(), 60)
    assert found == pytest.approx(1 / (1 + 16 / 60), abs=0.05)
    noise = random.normal(0, 4, (60, 200))
    assert abs(trend.split_half_reliability(lambda weights: weights @ noise, 60)) < 0.25


def test_trends_that_do_not_exist_are_refused_in_words() -> None:
    for values, message in (
        ([1.0, 2], "a trend needs three or more points, and there are 2"),
        ([1.0, np.nan, 3], "not a finite number; leave out weeks or templates without data"),
        ([1.0, 1, 1], "all 3 points of the trend are equal"),
    ):
        with pytest.raises(UserError, match=message):
            trend.mann_kendall(np.array(values))
    with pytest.raises(UserError, match="a bootstrap needs two or more advocates"):
        trend.bootstrap_interval(lambda _: 0.0, 1)
    with pytest.raises(UserError, match="of 1000 resamples have no value"):
        trend.bootstrap_interval(lambda weights: float("nan") if weights[0] == 0 else 1.0, 5)
    with pytest.raises(UserError, match="halves need four or more advocates"):
        trend.split_half_reliability(lambda _: np.ones(3), 3)
    with pytest.raises(UserError, match="equal ones for all"):
        trend.split_half_reliability(lambda _: np.ones(3), 8)
    with pytest.raises(UserError, match="perfectly opposed"):
        trend.split_half_reliability(lambda weights: (weights[0] - 0.5) * np.arange(3.0), 8)
