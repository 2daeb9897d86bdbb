"""The laws that are not sums of powers: top-k accuracy, labels on top of prior knowledge, and repeated tokens.

Dims: R resamples, N points, K variables, P parameters.
"""

import dataclasses
import functools
import typing
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special

from jaxtempl.scaling.laws.catalog import FLOOR, HOFFMANN, ISIK
from jaxtempl.scaling.laws.forms import (
    SMALLEST,
    LawParameter,
    LogValues,
    Points,
    PointwiseLaw,
    Scales,
    Slopes,
    Theta,
    add_floor,
    exponent,
    scale,
)

LIN = "Lin et al., 2024, arXiv 2402.02314"
MUENNIGHOFF = "Muennighoff et al., 2023, arXiv 2305.16264"
MIN_LOG_ARGUMENT = 1e-9
REPETITIONS = LawParameter("R_D", True, 0.0, 4.0, (-5.0, 12.0))


class _ClosedForm:
    """The methods of a law that is given by one expression."""

    of_share = False

    def log(self, theta: Theta, x: Points) -> tuple[LogValues, Slopes]:
        """See Law."""
        return self._log(theta, x)

    def at(self, x: Points) -> PointwiseLaw:
        """See Law."""
        return functools.partial(self._log, x=x)

    def convert(self, theta: Theta, scales: Scales) -> Theta:
        """See Law."""
        return np.stack(self._convert(np.moveaxis(theta, -1, 0), scales.x, scales.y), axis=-1)

    @typing.no_type_check  # called in the inner loop of every fit
    def _log(self, theta: Any, x: Any) -> tuple[Any, Any]:
        raise NotImplementedError

    @typing.no_type_check  # theta is a list of parameters, each of one or of all resamples
    def _convert(self, theta: Any, x: Any, y: float) -> list[Any]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LogPower(_ClosedForm):
    """Accuracy that grows as a power of log tokens, without a bound."""

    variables: tuple[str, ...] = ("tokens",)
    name: str = "log law of top-k in tokens"
    formula: str = "y(D) = (log(A D^a))^b"
    source: str = f"{ISIK}, its law of translation quality"
    parameters: tuple[LawParameter, ...] = (
        LawParameter("A", True, 1.0, 1.0, (1e-3, 1e3)),
        LawParameter("a", False, 0.0, 0.5, (0.0, 50.0)),
        LawParameter("b", False, 0.1, 10.0, (0.02, 100.0)),
    )

    @typing.no_type_check
    def _log(self, theta: Any, x: Any) -> tuple[Any, Any]:
        line = theta[..., 0:1] + theta[..., 1:2] * np.log(x[:, 0])
        inside = np.maximum(line, MIN_LOG_ARGUMENT)
        power = theta[..., 2:3]
        slope = np.where(line > MIN_LOG_ARGUMENT, power / inside, 0.0)
        return power * np.log(inside), np.stack([slope, slope * np.log(x[:, 0]), np.log(inside)], axis=-1)

    @typing.no_type_check
    def _convert(self, theta: Any, x: Any, y: float) -> list[Any]:
        at_one, slope, power = theta
        factor = np.exp(np.log(y) / power)
        return [factor * (at_one - slope * np.log(x[0])), factor * slope, power]


@dataclasses.dataclass(frozen=True)
class Saturating(_ClosedForm):
    """Accuracy with a ceiling of at most 1, which it approaches as a power law; the bounded alternative to LogPower."""

    variables: tuple[str, ...] = ("tokens",)
    name: str = "bounded law of top-k in tokens"
    formula: str = "y(D) = M / (1 + A / D^a), M at most 1"
    source: str = "a logistic curve in log D; issue 6"
    of_share = True
    parameters: tuple[LawParameter, ...] = (
        LawParameter("M", True, -2.0, 0.0, (-15.0, 0.0), linear=True),
        LawParameter("A", True, -3.0, 3.0, (-25.0, 25.0)),
        exponent("a", 1.5),
    )

    @typing.no_type_check
    def _log(self, theta: Any, x: Any) -> tuple[Any, Any]:
        gap = theta[..., 1:2] - theta[..., 2:3] * np.log(x[:, 0])
        share = special.expit(gap)
        value = theta[..., 0:1] - np.logaddexp(0, gap)
        return value, np.stack([np.ones_like(gap), -share, share * np.log(x[:, 0])], axis=-1)

    @typing.no_type_check
    def _convert(self, theta: Any, x: Any, y: float) -> list[Any]:
        ceiling, gap, power = theta
        return [ceiling + np.log(y), gap + power * np.log(x[0]), power]


@dataclasses.dataclass(frozen=True)
class Rectified(_ClosedForm):
    """Loss against labels of a model whose prior knowledge is worth `K` in units of labels."""

    variables: tuple[str, ...] = ("labels",)
    name: str = "rectified law of labels"
    formula: str = "L(D) = E + B / (K + D^b)"
    source: str = f"{LIN}, equation 5 (its D_l is K)"
    parameters: tuple[LawParameter, ...] = (
        FLOOR,
        scale("B"),
        LawParameter("K", True, -5.0, 5.0, (-20.0, 20.0)),
        exponent("b", 1.5),
    )

    @typing.no_type_check
    def _log(self, theta: Any, x: Any) -> tuple[Any, Any]:
        floor, above, prior, power = (theta[..., i : i + 1] for i in range(4))
        logs = np.log(np.maximum(x[:, 0], SMALLEST))  # a model without labels has prior knowledge alone
        read = power * logs
        below = np.logaddexp(prior, read)
        of_prior, of_read = np.exp(prior - below), np.exp(read - below) * logs
        return add_floor(floor, above - below, np.stack([np.ones_like(below), -of_prior, -of_read], axis=-1))

    @typing.no_type_check
    def _convert(self, theta: Any, x: Any, y: float) -> list[Any]:
        floor, above, prior, power = theta
        of_labels = power * np.log(x[0])
        return [floor * y, above + np.log(y) + of_labels, prior + of_labels, power]


@dataclasses.dataclass(frozen=True)
class Repeated(_ClosedForm):
    """Loss of one size against tokens that are partly repeated; each repetition is worth less than the one before."""

    variables: tuple[str, ...] = ("tokens", "unique tokens")
    name: str = "data-constrained law of one size"
    formula: str = "L = E + B / D'^b, D' = U + U R_D (1 - exp(-(D / U - 1) / R_D)) where D > U, else D"
    source: str = f"{MUENNIGHOFF}, equation 5; {HOFFMANN}"
    parameters: tuple[LawParameter, ...] = (FLOOR, scale("B"), exponent("b"), REPETITIONS)

    @typing.no_type_check
    def _log(self, theta: Any, x: Any) -> tuple[Any, Any]:
        floor, above, power, repetitions = (theta[..., i : i + 1] for i in range(4))
        log_effective, _, of_repetitions = _decayed(np.log(x[:, 0]), np.log(x[:, 1]), np.exp(repetitions))
        slopes = np.stack([np.ones_like(log_effective), -log_effective, -power * of_repetitions], axis=-1)
        return add_floor(floor, above - power * log_effective, slopes)

    @typing.no_type_check
    def _convert(self, theta: Any, x: Any, y: float) -> list[Any]:
        floor, above, power, repetitions = theta
        return [floor * y, above + np.log(y) + power * np.log(x[0]), power, repetitions]


@dataclasses.dataclass(frozen=True)
class DataConstrained(_ClosedForm):
    """Loss of all sizes: repeated tokens, and parameters beyond those that the unique tokens need, are worth less.

    U_N is the compute-optimal number of parameters for U tokens: G^(1 + b / a) U^(b / a), where G = (a A / (b B))^(1 /
    (a + b)) (Hoffmann et al., equation 4).
    """

    variables: tuple[str, ...] = ("parameters", "tokens", "unique tokens")
    name: str = "data-constrained law"
    formula: str = "L = E + A / N'^a + B / D'^b, D' as for one size, N' = U_N + U_N R_N (1 - exp(-(N / U_N - 1) / R_N))"
    source: str = f"{MUENNIGHOFF}, equations 5 to 7; {HOFFMANN}"
    parameters: tuple[LawParameter, ...] = (
        FLOOR,
        scale("A", linear=False),
        exponent("a"),
        scale("B", linear=False),
        exponent("b"),
        REPETITIONS,
        REPETITIONS._replace(name="R_N"),
    )

    @typing.no_type_check
    def _log(self, theta: Any, x: Any) -> tuple[Any, Any]:
        floor, log_a, a, log_b, b, of_tokens, of_size = (theta[..., i : i + 1] for i in range(7))
        size, tokens, unique = np.log(x).T
        read, _, by_tokens = _decayed(tokens, unique, np.exp(of_tokens))
        best, slopes_of_best = _optimal_size(log_a, np.maximum(a, 1e-6), log_b, np.maximum(b, 1e-6), unique)
        used, by_best, by_size = _decayed(size, best, np.exp(of_size))
        first, second = log_a - a * used, log_b - b * read
        value = np.logaddexp(first, second)
        share = np.exp(first - value)
        through = -share * a * by_best  # of the optimal size
        own = [share, -share * used, 1 - share, -(1 - share) * read]
        slopes = [one + through * of_best for one, of_best in zip(own, slopes_of_best, strict=True)]
        slopes += [-(1 - share) * b * by_tokens, -share * a * by_size]
        return add_floor(floor, value, np.stack(np.broadcast_arrays(*slopes), axis=-1))

    @typing.no_type_check
    def _convert(self, theta: Any, x: Any, y: float) -> list[Any]:
        floor, log_a, a, log_b, b, of_tokens, of_size = theta
        size, tokens = np.log(x[0]), np.log(x[1])
        return [floor * y, log_a + np.log(y) + a * size, a, log_b + np.log(y) + b * tokens, b, of_tokens, of_size]


@typing.no_type_check
def _optimal_size(log_a: Any, a: Any, log_b: Any, b: Any, unique: Any) -> tuple[Any, list[Any]]:
    """Return the log of the compute-optimal parameters for log unique tokens, and its slopes in log A, a, log B, b."""
    ratio = b / a
    log_g = (np.log(a) + log_a - np.log(b) - log_b) / (a + b)
    by_a, by_b = (1 / a - log_g) / (a + b), (-1 / b - log_g) / (a + b)
    slopes = [
        1 / a,
        (1 + ratio) * by_a - ratio / a * (log_g + unique),
        -1 / a,
        (1 + ratio) * by_b + (log_g + unique) / a,
    ]
    return (1 + ratio) * log_g + ratio * unique, slopes


@typing.no_type_check
def _decayed(total: Any, unique: Any, repetitions: Any) -> tuple[Any, Any, Any]:
    """Return the log of the effective amount, and its slopes in log unique and in log repetitions.

    Args:
        total: Log of the amount, repetitions included.
        unique: Log of the amount without repetitions.
        repetitions: R, at which the value of a repetition decays.
    """
    ratio = np.exp(np.clip(total - unique, 0, 50))
    left = np.exp(-(ratio - 1) / repetitions)
    times = 1 + repetitions * (1 - left)
    repeated = total > unique
    by_unique = np.where(repeated, 1 - ratio * left / times, 0.0)
    by_repetitions = (repetitions * (1 - left) - (ratio - 1) * left) / times
    return np.minimum(total, unique) + np.log(times), by_unique, by_repetitions


def effective_tokens(
    tokens: Float[np.ndarray, "..."], unique: Float[np.ndarray, "..."], repetitions: float | Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Return the number of new tokens that are worth as much as partly repeated ones (arXiv 2305.16264, equation 5).

    Args:
        tokens: Tokens read, repetitions included.
        unique: Distinct tokens among them.
        repetitions: R, the number of repetitions at which their value decays; the paper fits 15.4.
    """
    return np.exp(_decayed(np.log(tokens), np.log(unique), repetitions)[0])


LOG_POWER, SATURATING, RECTIFIED = LogPower(), Saturating(), Rectified()
REPEATED, DATA_CONSTRAINED = Repeated(), DataConstrained()
