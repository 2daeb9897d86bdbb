"""What a law is, and the form that most have: a sum of powers.

Its logarithm is a log-sum-exp of terms that are linear in the parameters (Hoffmann et al., 2022, arXiv 2203.15556,
section 3.3). Parameters that must be above 0 are logarithms inside.

Dims: R resamples, N points, K variables, P parameters, Q parameters without an outer exponent, T terms.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

Theta = Float[np.ndarray, "*R P"]
Points = Float[np.ndarray, "N K"]
Values = Float[np.ndarray, "*R N"]
Slopes = Float[np.ndarray, "*R N P"]


class Parameter(NamedTuple):
    """One parameter of a law.

    Attributes:
        name: as in the formula.
        logarithm: whether the fit works with its logarithm, so that it stays above 0.
        low: least starting value, of what the fit works with.
        high: greatest.
    """

    name: str
    logarithm: bool
    low: float
    high: float


@runtime_checkable
class Law(Protocol):
    """A law of one quantity in others.

    Attributes:
        name: of the law.
        formula: as a user reads it.
        source: where it is from.
        variables: what it depends on, in the order of the columns of points.
        parameters: in order.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def formula(self) -> str: ...  # noqa: D102
    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def variables(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def parameters(self) -> tuple[Parameter, ...]: ...  # noqa: D102

    def log(self, theta: Theta, x: Points) -> tuple[Values, Slopes]:
        """Logarithm of the prediction, and its derivative by each parameter."""
        ...


Coefficients = Mapping[str, float | Float[np.ndarray, " N"]]  # of parameters by name; "" is what no parameter scales
Term = Callable[[Float[np.ndarray, "N K"]], Coefficients]


@dataclasses.dataclass(frozen=True)
class PowerSum:
    """(sum of terms) ^ exponent; a term is exp of what is linear in the parameters.

    Attributes:
        terms: coefficients of each term's linear function.
        outer: whether the last parameter is the exponent of the sum; otherwise it is 1.
    """

    name: str
    formula: str
    source: str
    variables: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    terms: tuple[Term, ...]
    outer: bool = False

    def log(self, theta: Theta, x: Points) -> tuple[Values, Slopes]:
        """See Law."""
        features, offsets = self._features(x)
        each = np.einsum("tnq,...q->...tn", features, theta[..., : features.shape[2]]) + offsets
        largest = each.max(axis=-2, keepdims=True)
        weights = np.exp(each - largest)
        total = weights.sum(axis=-2, keepdims=True)
        value = (largest + np.log(total))[..., 0, :]
        slopes = np.einsum("...tn,tnq->...nq", weights / total, features)
        if not self.outer:
            return value, slopes
        power = theta[..., -1:]
        return power * value, np.concatenate([power[..., None] * slopes, value[..., None]], axis=-1)

    def _features(self, x: Points) -> tuple[Float[np.ndarray, "T N Q"], Float[np.ndarray, "T N"]]:
        names = [parameter.name for parameter in self.parameters[: len(self.parameters) - self.outer]]
        found = [term(x) for term in self.terms]
        columns = [[np.broadcast_to(np.asarray(own.get(name, 0.0), float), len(x)) for name in names] for own in found]
        offsets = [np.broadcast_to(np.asarray(own.get("", 0.0), float), len(x)) for own in found]
        return np.stack([np.stack(column, axis=1) for column in columns]), np.stack(offsets)
