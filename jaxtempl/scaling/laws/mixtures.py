"""Domain text against general text: the critical share, forgetting, and how many general tokens replace domain tokens.

Dims: N points.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxtempl.scaling.laws.fitting import Fit
from jaxtempl.scaling.laws.regression import Regression, fit_line

HALVINGS = 40  # bisection steps

LossCurve = tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]  # tokens (or operations), loss


def critical_share(general: Fit, parameters: float, tokens: float, limit: float) -> float | None:
    """Return the largest share of domain text that keeps the general loss within a limit.

    See Que et al., 2024 (arXiv 2406.01375).

    Args:
        general: Mixture law of the general loss, in the share of general text.
        parameters: Parameters of the model.
        tokens: Tokens to read.
        limit: Maximum of the general loss, nats per token.

    Returns:
        The share, or None if even general text alone exceeds the limit.
    """

    def loss(share: float) -> float:
        return general.predict(np.array([[parameters, tokens, 1 - share]]))[0].value

    if loss(0.0) > limit:
        return None
    if loss(1.0) <= limit:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) <= limit else (low, middle)
    return low


def forgetting(domain: Float[np.ndarray, " N"], general: Float[np.ndarray, " N"]) -> Regression | None:
    """Regress the rise of the general loss on the fall of the domain loss, both since the base (the first point).

    Kalajdzievski, 2024 (arXiv 2401.05605), found the relation linear.
    """
    return fit_line(domain[0] - domain, general - general[0])


class TokenRatio(NamedTuple):
    """General tokens over domain tokens at equal loss.

    Attributes:
        value: Ratio.
        at_least: Whether the ratio is a lower bound, because the domain corpus was better at its first point already.
    """

    value: float
    at_least: bool


class TokenEfficiency(NamedTuple):
    """The ratio of general to domain tokens at equal loss, by size.

    Attributes:
        by_size: Ratio at the best loss that both corpora reach, by parameters.
        trend: Regression of the log ratio on log parameters; None if fewer than three sizes have an exact ratio.
    """

    by_size: dict[float, TokenRatio]
    trend: Regression | None


def efficiency(special: Mapping[float, LossCurve], general: Mapping[float, LossCurve]) -> TokenEfficiency:
    """Return the specialised-to-general efficiency ratio (arXiv 2501.02068).

    Args:
        special: Curves of models adapted to the domain corpus, by parameters.
        general: Curves of models adapted to a general corpus, by parameters.
    """
    ratios = {size: token_ratio(special[size], general[size]) for size in special if size in general}
    defined = {size: ratio for size, ratio in ratios.items() if ratio}
    exact = {size: ratio.value for size, ratio in defined.items() if not ratio.at_least}
    sizes, values = np.log(list(exact)), np.log(list(exact.values()))
    return TokenEfficiency(defined, fit_line(sizes, values) if len(exact) > 2 else None)


def token_ratio(special: LossCurve, general: LossCurve) -> TokenRatio | None:
    """Return general over special tokens for the best loss that both corpora reach.

    None if the general corpus is better at its first point already.
    """
    target = max(special[1].min(), general[1].min())
    if target > general[1].max():
        return None
    at_least = bool(target > special[1].max())
    special_tokens = float(special[0].min()) if at_least else tokens_to_reach(special, target)
    return TokenRatio(tokens_to_reach(general, target) / special_tokens, at_least)


def tokens_to_reach(curve: LossCurve, loss: float) -> float:
    """Return the tokens at which a falling curve first reaches a loss, interpolated in log tokens."""
    tokens, losses = curve
    order = np.argsort(tokens)
    best_so_far = np.minimum.accumulate(losses[order])
    return float(np.exp(np.interp(-loss, -best_so_far, np.log(tokens[order]))))


def equivalent_tokens(law: Fit, loss: float, limit: float = 1e15) -> float | None:
    """Return the tokens at which a law in tokens alone reaches another size's loss (the paper, section 5.1).

    Args:
        law: Fitted law in tokens.
        loss: Loss to match.
        limit: Maximum number of tokens.

    Returns:
        The tokens, or None if the law stays above the loss.
    """
    low, high = 0.0, np.log(limit)

    def predicted(log_tokens: float) -> float:
        return law.predict(np.array([[np.exp(log_tokens)]]))[0].value

    if predicted(high) > loss:
        return None
    for _ in range(2 * HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if predicted(middle) <= loss else (middle, high)
    return float(np.exp(high))
