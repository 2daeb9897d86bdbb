"""The interface of a scaling law, and the form of most laws: a sum of power laws.

The logarithm of a sum of powers is a log-sum-exp of terms that are linear in the parameters (Hoffmann et al., 2022,
arXiv 2203.15556, section 3.3). A fit works with the logarithm of each scale, which must be positive, and with a floor
itself, which may be 0.

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
SMALLEST = 1e-300  # has a logarithm where 0 has none
PointwiseLaw = Callable[[Any], tuple[Any, Any]]  # Theta -> (LogValues, Slopes), at fixed points; unchecked for speed


class LawParameter(NamedTuple):
    """One parameter of a law.

    Starts and bounds are in scaled units: each variable over its geometric mean, and the quantity over its own.

    Attributes:
        name: Symbol in the formula.
        logarithm: Whether the fit works with the parameter's logarithm, which keeps it positive.
        low: Minimum of the starting values, in the fit's representation.
        high: Maximum of the starting values, in the fit's representation.
        bounds: Smallest and largest value, in the fit's representation.
        linear: Whether the prediction is linear in the parameter; the best value is then solved for at each start.
    """

    name: str
    logarithm: bool
    low: float
    high: float
    bounds: tuple[float, float]
    linear: bool = False

    @property
    def is_exponent(self) -> bool:
        """True if the parameter is neither a scale nor a floor."""
        return not self.logarithm and not self.linear


def floor(name: str = "E") -> LawParameter:
    """Return an asymptote, which may be 0."""
    return LawParameter(name, False, 0.0, 1.0, (0.0, 1e3), linear=True)


def scale(name: str, linear: bool = True) -> LawParameter:
    """Return the positive scale of a term."""
    return LawParameter(name, True, -3.0, 1.0, (-25.0, 25.0), linear)


def exponent(name: str, high: float = 1.2, minimum: float = 0.0) -> LawParameter:
    """Return a positive exponent with the maximum of its starting values and its own minimum."""
    return LawParameter(name, False, 0.03, high, (minimum, 10.0))


class Scales(NamedTuple):
    """The units of a fit.

    Attributes:
        x: Unit of each variable.
        y: Unit of the quantity.
    """

    x: Float[np.ndarray, " K"]
    y: float

    def inverse(self) -> "Scales":
        """Return the units that convert back."""
        return Scales(1 / self.x, 1 / self.y)


@runtime_checkable
class Law(Protocol):
    """A law that predicts one quantity from others.

    Attributes:
        name: Name of the law.
        formula: Formula for readers.
        source: Publication.
        variables: Names of the variables, in the order of the columns of points.
        parameters: Parameters, in the order of theta.
        of_share: Whether the quantity is a share of 1, which has no other unit.
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
    @property
    def of_share(self) -> bool: ...  # noqa: D102

    def log(self, theta: Theta, x: Points) -> tuple[LogValues, Slopes]:
        """Return the logarithm of the prediction and its derivative with respect to each parameter."""
        ...

    def at(self, x: Points) -> PointwiseLaw:
        """Return `log` at fixed points as a function of theta alone, for repeated evaluation."""
        ...

    def convert(self, theta: Theta, scales: Scales) -> Theta:
        """Return the parameters for x and y, given those for x / scales.x and y / scales.y."""
        ...


def unit(variable: str) -> str:
    """Return the unit of a variable; empty for a share, which has none."""
    return "" if "share" in variable else variable.removeprefix("unique ")


def scales_of(law: Law, x: Points, y: Float[np.ndarray, " N"]) -> Scales:
    """Return the geometric means of the points, one for all variables of a unit."""
    units = [unit(name) for name in law.variables]
    logs = np.log(x)
    means = {name: logs[:, [u == name for u in units]].mean() for name in units}
    at = np.array([np.exp(means[name]) if name else 1.0 for name in units])
    return Scales(at, 1.0 if law.of_share else float(np.exp(np.mean(np.log(y)))))


Coefficients = Mapping[str, float | Float[np.ndarray, " N"]]  # by parameter name; "" is the constant offset
Term = Callable[[Float[np.ndarray, "N K"]], Coefficients]


@dataclasses.dataclass(frozen=True)
class PowerSum:
    """(floor + sum of terms) ^ exponent; each term is the exponential of a linear function of the parameters.

    Attributes:
        terms: Coefficients of each term's linear function.
        floor: Whether the first parameter is a floor.
        outer: Whether the last parameter is the exponent of the sum; otherwise the exponent is 1. It excludes a floor.
        of_share: See Law.
    """

    name: str
    formula: str
    source: str
    variables: tuple[str, ...]
    parameters: tuple[LawParameter, ...]
    terms: tuple[Term, ...]
    floor: bool = True
    outer: bool = False
    of_share: bool = False

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
            own = theta[..., self.floor : self.floor + inner]
            each = (own @ flat).reshape(*theta.shape[:-1], terms, points) + offsets
            largest = each.max(axis=-2, keepdims=True)
            weights = np.exp(each - largest)
            total = weights.sum(axis=-2, keepdims=True)
            value = (largest + np.log(total))[..., 0, :]
            slopes = _weighted_sum(weights / total, by_point)
            if self.floor:
                return add_floor(theta[..., 0:1], value, slopes)
            power = theta[..., -1:]
            return power * value, np.concatenate([power[..., None] * slopes, value[..., None]], axis=-1)

        return evaluate

    @typing.no_type_check  # called for all resamples
    def convert(self, theta: Any, scales: Scales) -> Any:
        """See Law."""
        (to, at), (shift, by) = zip(*(self._features(x[None]) for x in (scales.x, np.ones_like(scales.x))), strict=True)
        own = slice(self.floor, self.floor + to.shape[-1])
        converted = theta.copy()
        of_y = np.log(scales.y) / (theta[..., -1] if self.outer else 1.0)
        for term, offset, coefficients in zip((to - at)[:, 0], (shift - by)[:, 0], at[:, 0], strict=True):
            index = self.floor + int(np.argmax(coefficients))  # the scale, whose coefficient is 1
            converted[..., index] += of_y - theta[..., own] @ term - offset
        if self.floor:
            converted[..., 0] *= scales.y
        return converted

    def _features(self, x: Points) -> tuple[Float[np.ndarray, "T N Q"], Float[np.ndarray, "T N"]]:
        names = [parameter.name for parameter in self.parameters[self.floor : len(self.parameters) - self.outer]]
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


@typing.no_type_check  # called in the inner loop of every fit
def add_floor(floor: Any, value: Any, slopes: Any) -> tuple[Any, Any]:
    """Return log(floor + exp(value)) and its slopes, given those of value; the floor's slope comes first."""
    total = np.logaddexp(np.log(np.maximum(floor, SMALLEST)), value)
    above = np.exp(value - total)[..., None]
    return total, np.concatenate([np.exp(-total)[..., None], above * slopes], axis=-1)
