"""Power, design effects and confidence sequences: published examples, simulated experiments, refusals in words."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from jaxtempl.errors import UserError
from jaxtempl.experiments import power, sequential
from jaxtempl.experiments.estimators import Estimate
from jaxtempl.experiments.power import Traffic

# Picks of real people, as measured on RasaHQ/STAR: SD 24.8 s, correlation .21 by pair, 7.9 picks a pair.
TRAFFIC = Traffic(24.8, 0.21, 7.9, 0.5, 1000.0, 0.5, 150)
POCOCK_AND_OBRIEN_FLEMING = [
    (2, 2.178, 1.977),
    (3, 2.289, 2.004),
    (4, 2.361, 2.024),
    (5, 2.413, 2.04),
    (10, 2.555, 2.087),
]
MANY = 1e6  # degrees of freedom at which t is normal


def test_the_power_of_the_powercalculator_of_booking_is_reproduced() -> None:
    """An example of bookingcom/powercalculator's tests: base .1, SD .3, 1 % more, 10,000 in all, 10 % level."""
    se = 0.3 * math.sqrt(2 / 5000)
    assert power.power(0.1 * 0.01, se, MANY, alpha=0.1) == pytest.approx(0.104709, abs=2e-6)


@pytest.mark.parametrize(("sd", "effect", "n"), [(30, 3.75 * 0.05, 409600), (math.sqrt(0.05 * 0.95), 0.0025, 121600)])
def test_the_rule_of_16_variances_is_reproduced(sd: float, effect: float, n: int) -> None:
    """Kohavi et al. 2009: n = 16 SD^2 / effect^2 an arm, which rounds 15.7 up."""
    assert power.power(effect, sd * math.sqrt(2 / n), MANY) == pytest.approx(0.8074, abs=1e-4)
    exact = 2 * (sd / (effect / power.detectable_effect(1.0, MANY))) ** 2
    assert exact == pytest.approx(n * 15.7 / 16, rel=1e-3)


def test_the_example_of_cluster_power_needs_16_clusters_an_arm() -> None:
    """clusterPower's crtpwr.2mean: 10 a cluster, difference 1, correlation .1, variance 5."""

    def found(clusters: int) -> float:
        se = math.sqrt(5 * power.design_effect(10.0, 0.0, 0.1) * 2 / (10 * clusters))
        return power.power(1.0, se, 2.0 * clusters - 2)

    assert found(15) < 0.8 < found(16)


def test_unequal_clusters_have_a_larger_design_effect() -> None:
    assert power.design_effect(8.0, 0.0, 0.21) == pytest.approx(1 + 7 * 0.21)
    assert power.design_effect(8.0, 0.5, 0.21) == pytest.approx(1 + 9 * 0.21)
    assert power.design_effect(8.0, 0.5, 0.0) == 1


def test_the_standard_error_is_that_of_simulated_pairs() -> None:
    random, found = np.random.default_rng(0), []
    for _ in range(300):
        sizes = np.where(random.random(400) < 0.5, 4, 12)  # mean 8, coefficient of variation .5
        pairs = np.repeat(np.arange(400), sizes)
        times = 10 * (
            math.sqrt(0.21) * random.normal(size=400)[pairs] + math.sqrt(0.79) * random.normal(size=pairs.size)
        )
        treated = pairs % 4 == 0
        found.append(times[treated].mean() - times[~treated].mean())
    traffic = Traffic(10.0, 0.21, 8.0, 0.5, 400.0, 0.25, 100)
    assert power.standard_error(traffic, 1.0) == pytest.approx(np.std(found), rel=0.12)


@pytest.mark.parametrize("df", [1.0, 5.0, 149.0])
def test_power_is_the_tail_of_the_noncentral_t_distribution(df: float) -> None:
    critical = stats.t.isf(0.025, df)
    for shift in (0.5, 2.8, 5.0):
        expected = stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift)
        assert power.power(shift, 1.0, df) == pytest.approx(expected, abs=2e-5)
    assert power.power(1e6, 1.0, df) == pytest.approx(1)


def test_the_curve_and_the_days_agree() -> None:
    days = power.days_needed(TRAFFIC, 0.45)
    before, after = power.power_curve(TRAFFIC, 0.45, [days - 1.0, float(days)])
    assert before.power < 0.8 <= after.power
    assert after.detectable <= 0.45 < before.detectable
    assert before.se > after.se == power.standard_error(TRAFFIC, float(days))


def test_power_is_the_level_without_an_effect_and_symmetric() -> None:
    assert power.power(0.0, 1.0, 9.0) == pytest.approx(0.05, abs=2e-5)
    assert power.power(-2.0, 1.0, 9.0) == pytest.approx(power.power(2.0, 1.0, 9.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correlation": -0.5}, "no positive variance; measure it again on more clusters"),
        ({"correlation": 1.5}, "no positive variance"),
        ({"share": 1.0}, "share between 0 and 1"),
        ({"sd": 0.0}, "must be above 0"),
        ({"pairs_a_day": math.nan}, "must be above 0"),
        ({"advocates": 1}, "needs two or more advocates; found 1"),
    ],
)
def test_impossible_traffic_is_refused_in_words(change: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        power.power_curve(TRAFFIC._replace(**change), 1.0, [14.0])


def test_an_effect_that_takes_too_long_is_refused() -> None:
    for effect in (0.0, 1e-4):
        with pytest.raises(UserError, match="takes more than 3650 days"):
            power.days_needed(TRAFFIC, effect)


def test_the_bounds_of_the_normal_mixture_are_those_of_confseq() -> None:
    """gostevehoward/confseq, test/uniform_boundaries_unittest.cpp."""
    scale = sequential.mixture_scale(100.0, 0.05)
    assert scale == pytest.approx(12.60056, abs=1e-5)
    bound = sequential.mixture_bound(100.0, scale, 0.05)
    assert bound == pytest.approx(30.35209, abs=1e-5)

    def log_mixture(total: float, time: float) -> float:
        """Return the integral of the likelihood ratio over the mixture's normal distribution, numerically."""
        drift = np.linspace(-3, 3, 200_001)
        density = stats.norm.pdf(drift, scale=scale**-0.5) * np.exp(drift * total - drift**2 * time / 2)
        return math.log(np.trapezoid(density, drift))

    assert log_mixture(10, 100) == pytest.approx(-0.6510052, abs=1e-6)
    assert log_mixture(bound, 100) == pytest.approx(math.log(1 / 0.05), abs=1e-6)


def test_the_one_sided_bound_of_confseq_is_the_two_sided_one_of_twice_the_level() -> None:
    """The same tests of confseq; a half-normal mixture bounds one side, and the other side hardly ever crosses."""
    scale = sequential.mixture_scale(100.0, 0.1)

    def log_mixture(total: float, time: float) -> float:
        drift = np.linspace(0, 3, 200_001)
        density = 2 * stats.norm.pdf(drift, scale=scale**-0.5) * np.exp(drift * total - drift**2 * time / 2)
        return math.log(np.trapezoid(density, drift))

    assert log_mixture(10, 100) == pytest.approx(-0.06502391, abs=1e-6)
    assert log_mixture(27.66071, 100) == pytest.approx(math.log(1 / 0.05), abs=1e-5)
    assert sequential.mixture_bound(100.0, scale, 0.1) == pytest.approx(27.66071, rel=1e-3)


def crossing(bounds: Sequence[float]) -> float:
    """Return the probability that a standard score ever exceeds its bound, at looks of equal information.

    Armitage, McPherson and Rowe (1969), by Gauss and Legendre's quadrature.
    """
    nodes, weights = np.polynomial.legendre.leggauss(80)
    at, mass = np.zeros(1), np.ones(1)  # the sum's values without a crossing so far, and their probabilities
    for look, bound in enumerate(bounds, 1):
        limit = bound * math.sqrt(look)
        mass = limit * weights * (stats.norm.pdf(limit * nodes[:, None] - at) @ mass)
        at = limit * nodes
    return 1 - float(mass.sum())


@pytest.mark.parametrize(("looks", "pocock", "obrien"), POCOCK_AND_OBRIEN_FLEMING)
def test_published_group_sequential_bounds_are_crossed_in_5_percent(looks: int, pocock: float, obrien: float) -> None:
    """Jennison and Turnbull's tables; the integral that the next test holds the confidence sequence to."""
    assert crossing([pocock] * looks) == pytest.approx(0.05, abs=2e-4)
    assert crossing([obrien * math.sqrt(looks / k) for k in range(1, looks + 1)]) == pytest.approx(0.05, abs=2e-4)


def test_spending_bounds_of_lan_and_demets_spend_their_level() -> None:
    """The bounds of ldbounds at five equal looks."""
    shares = np.arange(1, 6) / 5
    obrien = 4 * stats.norm.sf(stats.norm.isf(0.0125) / np.sqrt(shares))  # a level of .025 on each side
    pocock = 0.05 * np.log1p((math.e - 1) * shares)
    for bounds, spent in (
        ((4.8769, 3.3569, 2.6803, 2.2898, 2.031), obrien),
        ((2.438, 2.4268, 2.4101, 2.3966, 2.3859), pocock),
    ):
        assert [crossing(bounds[:look]) for look in range(1, 6)] == pytest.approx(spent, abs=1e-4)
    assert crossing((4.562, 3.226, 2.634, 2.281, 2.04)) == pytest.approx(0.05, abs=1e-4)  # O'Brien and Fleming's


@pytest.mark.parametrize("looks", [1, 5, 14, 60])
def test_looks_of_the_sequence_cross_in_less_than_5_percent_exactly(looks: int) -> None:
    scale = sequential.mixture_scale(float(looks))
    bounds = [sequential.mixture_bound(float(k), scale) / math.sqrt(k) for k in range(1, looks + 1)]
    assert 0.001 < crossing(bounds) < 0.03
    assert crossing([1.96] * looks) > (0.04 if looks == 1 else 0.14)


def test_the_sequence_is_wider_by_55_percent_at_its_planned_end_and_more_elsewhere() -> None:
    def ratio(se: float) -> float:
        found = sequential.confidence_sequence(Estimate(1.0, 0.0, 0.0, 0.0, se, 99.0), 0.1)
        return (found.high - 1) / (1.959964 * se)

    assert ratio(0.1) == pytest.approx(1.549, abs=1e-3)
    assert ratio(0.1) < ratio(0.03)
    assert ratio(0.1) < ratio(0.3)


def test_14_looks_at_two_equal_arms_ever_reject_less_than_5_percent() -> None:
    random, ever, naive = np.random.default_rng(1), 0, 0
    for _ in range(500):
        days = np.arange(1, 15)
        estimates = np.cumsum(random.normal(size=14)) / days
        looks = [Estimate(float(e), 0, 0, 0, float(d**-0.5), 99) for e, d in zip(estimates, days, strict=True)]
        sequence = [sequential.confidence_sequence(look, 14**-0.5) for look in looks]
        ever += any(not look.low <= 0 <= look.high for look in sequence)
        naive += any(abs(look.value) > 1.96 * look.se for look in looks)
    assert ever <= stats.binom.ppf(0.999, 500, 0.05)
    assert naive > 75


def test_a_planned_error_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="must be above 0; take it from the plan"):
        sequential.confidence_sequence(Estimate(1.0, 0.0, 0.0, 0.0, 1.0, 9.0), 0.0)
