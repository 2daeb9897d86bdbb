"""The laws that are no sums of powers: accuracy, labels with what is known already, and tokens seen more than once.

Dims: R resamples, N points, K variables, P parameters.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import special

from jaxtempl.scaling.laws.catalog import FLOOR, HOFFMANN, ISIK
from jaxtempl.scaling.laws.forms import Parameter, Points, Slopes, Theta, Values

LIN = "Lin et al., 2024, arXiv 2402.02314"
MUENNIGHOFF = "Muennighoff et al., 2023, arXiv 2305.16264"
LEAST = 1e-9  # of what a logarithm is taken
BOUND = 30.0  # of the logarithm of R, which a line search may try far out


@dataclasses.dataclass(frozen=True)
class LogPower:
    """Accuracy that grows with a power of log tokens, and without end."""

    variables: tuple[str, ...] = ("tokens",)
    name: str = "log law of top-k in tokens"
    formula: str = "y(D) = (log(A D^a))^b"
    source: str = f"{ISIK}, its law of translation quality"
    parameters: tuple[Parameter, ...] = (
        Parameter("A", True, -12.0, 6.0),
        Parameter("a", False, 0.05, 2.0),
        Parameter("b", False, 0.05, 2.0),
    )

    def log(self, theta: Theta, x: Points) -> tuple[Values, Slopes]:
        """See Law."""
        line = theta[..., 0:1] + theta[..., 1:2] * np.log(x[:, 0])
        inside = np.maximum(line, LEAST)
        power = theta[..., 2:3]
        slope = np.where(line > LEAST, power / inside, 0.0)
        return power * np.log(inside), np.stack([slope, slope * np.log(x[:, 0]), np.log(inside)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Saturating:
    """Accuracy that ends at some share: what is missing of it is a power law. A bounded alternative to LogPower."""

    variables: tuple[str, ...] = ("tokens",)
    name: str = "bounded law of top-k in tokens"
    formula: str = "y(D) = M / (1 + A / D^a)"
    source: str = "a logistic curve in log D; issue 6"
    parameters: tuple[Parameter, ...] = (
        Parameter("M", True, -2.0, 0.0),
        Parameter("A", True, -2.0, 12.0),
        Parameter("a", False, 0.05, 1.5),
    )

    def log(self, theta: Theta, x: Points) -> tuple[Values, Slopes]:
        """See Law."""
        gap = theta[..., 1:2] - theta[..., 2:3] * np.log(x[:, 0])
        share = special.expit(gap)
        value = theta[..., 0:1] - np.logaddexp(0, gap)
        return value, np.stack([np.ones_like(gap), -share, share * np.log(x[:, 0])], axis=-1)


@dataclasses.dataclass(frozen=True)
class Rectified:
    """Loss against labels of a model that begins with what as many labels as `K` would have taught it."""

    variables: tuple[str, ...] = ("labels",)
    name: str = "rectified law of labels"
    formula: str = "L(D) = (B / (K + D^b) + E)^a"
    source: str = f"{LIN}, equation 5 (its D_l is K)"
    parameters: tuple[Parameter, ...] = (
        Parameter("B", True, 0.0, 10.0),
        Parameter("K", True, 0.0, 10.0),
        Parameter("b", False, 0.2, 1.5),
        FLOOR,
        Parameter("a", False, 0.3, 1.5),
    )

    def log(self, theta: Theta, x: Points) -> tuple[Values, Slopes]:
        """See Law."""
        above, known, power, floor, outer = (theta[..., i : i + 1] for i in range(5))
        read = power * np.log(x[:, 0])
        below = np.logaddexp(known, read)
        inner = np.logaddexp(above - below, floor)
        share = np.exp(above - below - inner)  # of the first term
        of_known, of_read = np.exp(known - below), np.exp(read - below) * np.log(x[:, 0])
        slopes = [outer * share, -outer * share * of_known, -outer * share * of_read, outer * (1 - share), inner]
        return outer * inner, np.stack(slopes, axis=-1)


@dataclasses.dataclass(frozen=True)
class Repeated:
    """Loss against tokens of which only some are new: those seen again are worth less each time."""

    variables: tuple[str, ...] = ("tokens", "unique tokens")
    name: str = "data-constrained law"
    formula: str = "L = E + B / D'^b, D' = U + U R (1 - exp(-(D / U - 1) / R)) where D > U, else D"
    source: str = f"{MUENNIGHOFF}, equation 5 (its R*_D is R); {HOFFMANN}"
    parameters: tuple[Parameter, ...] = (
        FLOOR,
        Parameter("B", True, -2.0, 12.0),
        Parameter("b", False, 0.05, 1.2),
        Parameter("R", True, -1.0, 4.0),
    )

    def log(self, theta: Theta, x: Points) -> tuple[Values, Slopes]:
        """See Law."""
        floor, scale, power, worth = (theta[..., i : i + 1] for i in range(4))
        worth = np.exp(np.clip(worth, -BOUND, BOUND))
        effective = effective_tokens(x[:, 0], x[:, 1], worth)
        again = np.maximum(x[:, 0] / x[:, 1] - 1, 0)
        # d D' / d log R
        slope = x[:, 1] * (worth * (1 - np.exp(-again / worth)) - again * np.exp(-again / worth))
        term = scale - power * np.log(effective)
        value = np.logaddexp(floor, term)
        share = np.exp(term - value)
        slopes = [1 - share, share, -share * np.log(effective), -share * power * slope / effective]
        return value, np.stack(slopes, axis=-1)


def effective_tokens(
    tokens: Float[np.ndarray, "..."], unique: Float[np.ndarray, "..."], worth: float | Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """How many new tokens are worth what was read of `unique` ones (arXiv 2305.16264, equation 5).

    Args:
        tokens: read, repetitions included.
        unique: of them.
        worth: R, after how many repetitions most of what they can give is had; the paper's own value is 15.4.
    """
    again = np.maximum(tokens / unique - 1, 0)
    return np.minimum(tokens, unique) + unique * worth * (1 - np.exp(-again / worth))


LOG_POWER, SATURATING, RECTIFIED, REPEATED = LogPower(), Saturating(), Rectified(), Repeated()
