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
from jaxtempl.scaling.laws.forms import LawParameter, LogValues, Points, PointwiseLaw, Slopes, Theta

LIN = "Lin et al., 2024, arXiv 2402.02314"
MUENNIGHOFF = "Muennighoff et al., 2023, arXiv 2305.16264"
MIN_LOG_ARGUMENT = 1e-9
MAX_LOG_REPETITIONS = 30.0  # bound on log R, which a line search may overshoot


class _ClosedForm:
    """The methods of a law that is given by one expression."""

    def log(self, theta: Theta, x: Points) -> tuple[LogValues, Slopes]:
        """See Law."""
        return self._log(theta, x)

    def at(self, x: Points) -> PointwiseLaw:
        """See Law."""
        return functools.partial(self._log, x=x)

    @typing.no_type_check  # called in the inner loop of every fit
    def _log(self, theta: Any, x: Any) -> tuple[Any, Any]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LogPower(_ClosedForm):
    """Accuracy that grows as a power of log tokens, without a bound."""

    variables: tuple[str, ...] = ("tokens",)
    name: str = "log law of top-k in tokens"
    formula: str = "y(D) = (log(A D^a))^b"
    source: str = f"{ISIK}, its law of translation quality"
    parameters: tuple[LawParameter, ...] = (
        LawParameter("A", True, -12.0, 6.0),
        LawParameter("a", False, 0.05, 2.0),
        LawParameter("b", False, 0.05, 2.0),
    )

    @typing.no_type_check
    def _log(self, theta: Any, x: Any) -> tuple[Any, Any]:
        line = theta[..., 0:1] + theta[..., 1:2] * np.log(x[:, 0])
        inside = np.maximum(line, MIN_LOG_ARGUMENT)
        power = theta[..., 2:3]
        slope = np.where(line > MIN_LOG_ARGUMENT, power / inside, 0.0)
        return power * np.log(inside), np.stack([slope, slope * np.log(x[:, 0]), np.log(inside)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Saturating(_ClosedForm):
    """Accuracy with an upper bound, which it approaches as a power law; the bounded alternative to LogPower."""

    variables: tuple[str, ...] = ("tokens",)
    name: str = "bounded law of top-k in tokens"
    formula: str = "y(D) = M / (1 + A / D^a)"
    source: str = "a logistic curve in log D; issue 6"
    parameters: tuple[LawParameter, ...] = (
        LawParameter("M", True, -2.0, 0.0),
        LawParameter("A", True, -2.0, 12.0),
        LawParameter("a", False, 0.05, 1.5),
    )

    @typing.no_type_check
    def _log(self, theta: Any, x: Any) -> tuple[Any, Any]:
        gap = theta[..., 1:2] - theta[..., 2:3] * np.log(x[:, 0])
        share = special.expit(gap)
        value = theta[..., 0:1] - np.logaddexp(0, gap)
        return value, np.stack([np.ones_like(gap), -share, share * np.log(x[:, 0])], axis=-1)


@dataclasses.dataclass(frozen=True)
class Rectified(_ClosedForm):
    """Loss against labels of a model whose prior knowledge is worth `K` in units of labels."""

    variables: tuple[str, ...] = ("labels",)
    name: str = "rectified law of labels"
    formula: str = "L(D) = (B / (K + D^b) + E)^a"
    source: str = f"{LIN}, equation 5 (its D_l is K)"
    parameters: tuple[LawParameter, ...] = (
        LawParameter("B", True, 0.0, 10.0),
        LawParameter("K", True, 0.0, 10.0),
        LawParameter("b", False, 0.2, 1.5),
        FLOOR,
        LawParameter("a", False, 0.3, 1.5),
    )

    @typing.no_type_check
    def _log(self, theta: Any, x: Any) -> tuple[Any, Any]:
        above, prior, power, floor, outer = (theta[..., i : i + 1] for i in range(5))
        read = power * np.log(x[:, 0])
        below = np.logaddexp(prior, read)
        inner = np.logaddexp(above - below, floor)
        share = np.exp(above - below - inner)  # of the first term
        of_prior, of_read = np.exp(prior - below), np.exp(read - below) * np.log(x[:, 0])
        slopes = [outer * share, -outer * share * of_prior, -outer * share * of_read, outer * (1 - share), inner]
        return outer * inner, np.stack(slopes, axis=-1)


@dataclasses.dataclass(frozen=True)
class Repeated(_ClosedForm):
    """Loss against tokens that are partly repeated; each repetition is worth less than the one before."""

    variables: tuple[str, ...] = ("tokens", "unique tokens")
    name: str = "data-constrained law"
    formula: str = "L = E + B / D'^b, D' = U + U R (1 - exp(-(D / U - 1) / R)) where D > U, else D"
    source: str = f"{MUENNIGHOFF}, equation 5 (its R*_D is R); {HOFFMANN}"
    parameters: tuple[LawParameter, ...] = (
        FLOOR,
        LawParameter("B", True, -2.0, 12.0),
        LawParameter("b", False, 0.05, 1.2),
        LawParameter("R", True, -1.0, 4.0),
    )

    @typing.no_type_check
    def _log(self, theta: Any, x: Any) -> tuple[Any, Any]:
        floor, scale, power, log_repetitions = (theta[..., i : i + 1] for i in range(4))
        r = np.exp(np.clip(log_repetitions, -MAX_LOG_REPETITIONS, MAX_LOG_REPETITIONS))
        effective = effective_tokens(x[:, 0], x[:, 1], r)
        repeated = np.maximum(x[:, 0] / x[:, 1] - 1, 0)
        # d D' / d log R
        slope = x[:, 1] * (r * (1 - np.exp(-repeated / r)) - repeated * np.exp(-repeated / r))
        term = scale - power * np.log(effective)
        value = np.logaddexp(floor, term)
        share = np.exp(term - value)
        slopes = [1 - share, share, -share * np.log(effective), -share * power * slope / effective]
        return value, np.stack(slopes, axis=-1)


def effective_tokens(
    tokens: Float[np.ndarray, "..."], unique: Float[np.ndarray, "..."], repetitions: float | Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Return the number of new tokens that are worth as much as partly repeated ones (arXiv 2305.16264, equation 5).

    Args:
        tokens: Tokens read, repetitions included.
        unique: Distinct tokens among them.
        repetitions: R, the number of repetitions at which their value decays; the paper fits 15.4.
    """
    repeated = np.maximum(tokens / unique - 1, 0)
    return np.minimum(tokens, unique) + unique * repetitions * (1 - np.exp(-repeated / repetitions))


LOG_POWER, SATURATING, RECTIFIED, REPEATED = LogPower(), Saturating(), Rectified(), Repeated()
