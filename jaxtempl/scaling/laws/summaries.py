"""What a fitted law says, in plain sentences, and whether its intervals can be believed.

Dims: K variables.
"""

from functools import cache

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxtempl import files
from jaxtempl.config import paths
from jaxtempl.scaling.laws.curves import RECTIFIED
from jaxtempl.scaling.laws.fitting import LEVEL, Fit, Value
from jaxtempl.scaling.laws.goodness_of_fit import Judged, said

QUANTITIES = {
    "domain_loss": "language-model loss on the domain",
    "general_loss": "language-model loss on general text",
    "loss": "classification loss",
    "top1": "top-1",
    "top3": "top-3",
    "top5": "top-5",
}
COVERAGE = paths.ROOT / "docs" / "benchmarks" / "coverage.json"  # of bench/coverage.py


def named(quantity: str) -> str:
    """A quantity in words."""
    return QUANTITIES.get(quantity, quantity)


def sentence(found: Judged, quantity: str) -> str:
    """What a law says of a quantity, or why it says nothing."""
    if found.refused:
        return no_law(found.refused)
    parts = [_doubled(found.fit, quantity), _floor(found.fit), _again(found.fit), believed(found.fit)]
    return " ".join(part for part in parts if part)


def no_law(why: str) -> str:
    """That it is none."""
    return f"No such law here: {why}."


def _doubled(fit: Fit, quantity: str) -> str:
    """What twice as much of each variable would do, from the greatest values that were measured."""
    largest = fit.data.x.max(axis=0)
    now = fit.predict(largest[None])[0].value
    further = {name: i for i, name in enumerate(fit.law.variables) if "share" not in name}
    parts = [f"twice the {name} to {said(_twice(fit, largest, i))}" for name, i in further.items()]
    return f"From the most that was measured on, {named(quantity)} goes from {now:.3g} with {', with '.join(parts)}."


def _twice(fit: Fit, x: Float[np.ndarray, " K"], which: int) -> Value:
    factor = np.ones_like(x)
    factor[which] = 2
    return fit.predict((x * factor)[None])[0]


def _floor(fit: Fit) -> str:
    floor = fit.parameters.get("E")
    if not floor or fit.law is RECTIFIED:  # whose E is not where it ends
        return ""
    return f"It cannot fall below {said(floor)}." if floor.low > 1e-3 else "Its floor cannot be told from 0."


def _again(fit: Fit) -> str:
    if "R" not in fit.parameters:
        return ""
    return f"Most of what repeating tokens can give is had after {said(fit.parameters['R'])} repetitions."


def believed(fit: Fit) -> str:
    """A warning where intervals of this law held the truth too seldom."""
    low = under_covering().get(fit.law.name)
    return f"Its 95 % intervals are too narrow: of data made by it they held the truth in {low:.0%}." if low else ""


@cache
def under_covering() -> dict[str, float]:
    """The laws whose intervals held the truth less often than by chance (bench/coverage.py), and the least share."""
    if not COVERAGE.is_file():
        return {}
    measured = files.read_json(COVERAGE)
    least = stats.binom.ppf((1 - LEVEL) / 2, measured["fits"], LEVEL) / measured["fits"]
    shares = {name: min(law["held"].values()) for name, law in measured["laws"].items()}
    return {name: share for name, share in shares.items() if share < least}
