"""The interface of a scaling law, and the form of most laws: a sum of power laws.

The logarithm of a sum of powers is a log-sum-exp of terms that are linear in the parameters (Hoffmann et al., 2022,
arXiv 2203.15556, section 3.3). A fit works with the logarithm of each parameter that must be positive.

Dims: R resamples, N points, K variables, P parameters, Q parameters without an outer exponent, T terms.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

Theta = Float[np.ndarray, "*R P"]
Points = Float[np.ndarray, "N K"]
LogValues = Float[np.ndarray, "*R N"]
Slopes = Float[np.ndarray, "*R N P"]
PointwiseLaw = Callable[[Any], tuple[Any, Any]]  # Theta -> (LogValues, Slopes), at fixed points; unchecked for speed


class LawParameter(NamedTuple):
    """One parameter of a law.

    Attributes:
        name: Symbol in the formula.
        logarithm: Whether the fit works with the parameter's logarithm, which keeps it positive.
        low: Minimum of the starting values, in the fit's representation.
        high: Maximum of the starting values, in the fit's representation.
    """

    name: str
    logarithm: bool
    low: float
    high: float


@runtime_checkable
class Law(Protocol):
    """A law that predicts one quantity from others.

    Attributes:
        name: Name of the law.
        formula: Formula for readers.
        source: Publication.
        variables: Names of the variables, in the order of the columns of points.
        parameters: Parameters, in the order of theta.
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
    def parameters(self) -> tuple[LawParameter, ...]: ...  # noqa: D102

    def log(self, theta: Theta, x: Points) -> tuple[LogValues, Slopes]:
        """Return the logarithm of the prediction and its derivative with respect to each parameter."""
        ...

    def at(self, x: Points) -> PointwiseLaw:
        """Return `log` at fixed points as a function of theta alone, for repeated evaluation."""
        ...


Coefficients = Mapping[str, float | Float[np.ndarray, " N"]]  # by parameter name; "" is the constant offset
Term = Callable[[Float[np.ndarray, "N K"]], Coefficients]


@dataclasses.dataclass(frozen=True)
class PowerSum:
    """(sum of terms) ^ exponent; each term is the exponential of a linear function of the parameters.

    Attributes:
        terms: Coefficients of each term's linear function.
        outer: Whether the last parameter is the exponent of the sum; otherwise the exponent is 1.
    """

    name: str
    formula: str
    source: str
    variables: tuple[str, ...]
    parameters: tuple[LawParameter, ...]
    terms: tuple[Term, ...]
    outer: bool = False

    def log(self, theta: Theta, x: Points) -> tuple[LogValues, Slopes]:
        """See Law."""
        return self.at(x)(theta)

    def at(self, x: Points) -> PointwiseLaw:
        """See Law."""
        features, offsets = self._features(x)
        terms, points, inner = features.shape
        flat = features.reshape(terms * points, inner).T
        by_point = np.ascontiguousarray(features.transpose(1, 0, 2))

        @typing.no_type_check  # called in the inner loop of every fit
        def evaluate(theta: Any) -> tuple[Any, Any]:
            each = (theta[..., :inner] @ flat).reshape(*theta.shape[:-1], terms, points) + offsets
            largest = each.max(axis=-2, keepdims=True)
            weights = np.exp(each - largest)
            total = weights.sum(axis=-2, keepdims=True)
            value = (largest + np.log(total))[..., 0, :]
            slopes = _weighted_sum(weights / total, by_point)
            if not self.outer:
                return value, slopes
            power = theta[..., -1:]
            return power * value, np.concatenate([power[..., None] * slopes, value[..., None]], axis=-1)

        return evaluate

    def _features(self, x: Points) -> tuple[Float[np.ndarray, "T N Q"], Float[np.ndarray, "T N"]]:
        names = [parameter.name for parameter in self.parameters[: len(self.parameters) - self.outer]]
        coefficients = [term(x) for term in self.terms]
        columns = [[_column(each, name, len(x)) for name in names] for each in coefficients]
        offsets = [_column(each, "", len(x)) for each in coefficients]
        return np.stack([np.stack(column, axis=1) for column in columns]), np.stack(offsets)


def _column(coefficients: Coefficients, name: str, points: int) -> Float[np.ndarray, " N"]:
    return np.broadcast_to(np.asarray(coefficients.get(name, 0.0), float), points)


@typing.no_type_check
def _weighted_sum(weights: Any, by_point: Any) -> Any:
    """Contract weights [*R, T, N] with features [N, T, Q] over the terms: [*R, N, Q]."""
    if weights.ndim == 2:
        return (weights.T[:, None, :] @ by_point)[:, 0]
    return np.moveaxis(np.moveaxis(weights, -1, 0) @ by_point, 0, -2)
