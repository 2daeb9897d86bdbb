"""What adapting costs elsewhere, and what domain text is worth beside general text.

Dims: N points, S sizes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxtempl.scaling.laws.fitting import Fit, Value
from jaxtempl.scaling.laws.regression import Line, line

HALVINGS = 40  # of the range in which a share is looked for

Curve = tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]  # tokens (or operations), loss


def critical_share(general: Fit, parameters: float, tokens: float, most: float) -> float | None:
    """The greatest share of domain text at which the general loss is not above a limit (Que et al., arXiv 2406.01375).

    Args:
        general: the mixture law of the general loss, its share being that of the general text.
        parameters: of the model.
        tokens: to read.
        most: general loss, nats a token.

    Returns:
        None where even general text alone is above the limit.
    """

    def loss(share: float) -> float:
        return general.predict(np.array([[parameters, tokens, 1 - share]]))[0].value

    if loss(0.0) > most:
        return None
    if loss(1.0) <= most:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) <= most else (low, middle)
    return low


def forgetting(domain: Float[np.ndarray, " N"], general: Float[np.ndarray, " N"]) -> Line | None:
    """General loss gained over domain loss won, from the base (the first point) on: the slope of one against the other.

    After Kalajdzievski, 2024 (arXiv 2401.05605), who found it linear.
    """
    return line(domain[0] - domain, general - general[0])


class Ratio(NamedTuple):
    """General tokens over special ones, at equal loss.

    Attributes:
        value: it.
        at_least: whether the special corpus was better at its first point already, so that it is more than this.
    """

    value: float
    at_least: bool


class Efficiency(NamedTuple):
    """How many times the general tokens a size needs for what domain tokens give it.

    Attributes:
        by_size: the ratio at the best loss that both reach, by parameters.
        trend: of its logarithm in the logarithm of the parameters; None where fewer than three sizes have an exact one.
    """

    by_size: dict[float, Ratio]
    trend: Line | None


def efficiency(special: Mapping[float, Curve], general: Mapping[float, Curve]) -> Efficiency:
    """Specialised-to-general efficiency ratio (arXiv 2501.02068): at equal score, general tokens over special ones.

    Args:
        special: curves of models adapted to the domain's corpus, by parameters.
        general: the same of a general corpus.
    """
    found = {size: ratio(special[size], general[size]) for size in special if size in general}
    kept = {size: one for size, one in found.items() if one}
    exact = {size: one.value for size, one in kept.items() if not one.at_least}
    sizes, values = np.log(list(exact)), np.log(list(exact.values()))
    return Efficiency(kept, line(sizes, values) if len(exact) > 2 else None)


def ratio(special: Curve, general: Curve) -> Ratio | None:
    """Tokens that the general corpus needs over the special one's, for the best loss that both reach.

    None where the general corpus's own first loss is the better one.
    """
    goal = max(special[1].min(), general[1].min())
    if goal > general[1].max():
        return None
    at_least = bool(goal > special[1].max())
    own = float(special[0].min()) if at_least else needed(special, goal)
    return Ratio(needed(general, goal) / own, at_least)


def needed(curve: Curve, loss: float) -> float:
    """Tokens at which a falling curve first comes to a loss, by lines in log tokens between its points."""
    tokens, losses = curve
    order = np.argsort(tokens)
    best = np.minimum.accumulate(losses[order])  # of what was reached by then
    return float(np.exp(np.interp(-loss, -best, np.log(tokens[order]))))


def equivalent_tokens(of: Fit, matched: Value, most: float = 1e15) -> float | None:
    """Tokens at which a size's own law in tokens comes to the loss that another size has (the paper, section 5.1).

    Args:
        of: a law in tokens alone.
        matched: loss.
        most: tokens that are looked at.

    Returns:
        None where its floor is above that loss.
    """
    low, high = 0.0, np.log(most)

    def loss(tokens: float) -> float:
        return of.predict(np.array([[np.exp(tokens)]]))[0].value

    if loss(high) > matched.value:
        return None
    for _ in range(2 * HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if loss(middle) <= matched.value else (middle, high)
    return float(np.exp(high))
