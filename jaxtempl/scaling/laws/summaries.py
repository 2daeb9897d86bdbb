"""One-sentence summaries of fitted laws, with a warning where intervals under-cover.

Dims: K variables.
"""

from functools import cache

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxtempl import files
from jaxtempl.config import paths
from jaxtempl.scaling.laws.bootstrap import LEVEL
from jaxtempl.scaling.laws.fitting import Fit
from jaxtempl.scaling.laws.goodness_of_fit import LawAssessment
from jaxtempl.specs.interval import Interval

QUANTITIES = {
    "domain_loss": "language-model loss on the domain",
    "general_loss": "language-model loss on general text",
    "loss": "classification loss",
    "top1": "top-1",
    "top3": "top-3",
    "top5": "top-5",
}
COVERAGE = paths.ROOT / "docs" / "benchmarks" / "coverage.json"  # written by bench/coverage.py


def quantity_name(quantity: str) -> str:
    """Return a quantity's name for readers."""
    return QUANTITIES.get(quantity, quantity)


def summarise(assessment: LawAssessment, quantity: str) -> str:
    """Summarise what a law predicts for a quantity, or why it does not hold."""
    if assessment.rejection:
        return rejected(assessment.rejection)
    fit = assessment.fit
    doublings = _doublings(fit, quantity) if assessment.extrapolates else ""
    remarks = "".join(f" {remark[0].upper()}{remark[1:]}." for remark in assessment.remarks)
    parts = [doublings, _floor(fit), _repetitions(fit), coverage_warning(fit), remarks.strip()]
    return " ".join(part for part in parts if part)


def verdict(assessment: LawAssessment) -> str:
    """Return whether a law is accepted, with the errors that decide."""
    name = assessment.fit.law.name
    first = f"{name[0].upper()}{name[1:]} is rejected: {assessment.rejection}." if assessment.rejection else ""
    errors = [f"held-out values of {n} {h.error:.1%} off" for n, h in assessment.heldout.items() if h.error >= 0]
    accepted = f"{name[0].upper()}{name[1:]} is accepted: {', '.join([f'misfit {assessment.misfit:.1%}', *errors])}."
    remarks = [f"{remark[0].upper()}{remark[1:]}." for remark in assessment.remarks]
    return " ".join([first or accepted, *remarks])


def rejected(reason: str) -> str:
    """Return the summary of a law that does not hold."""
    return f"The law does not hold: {reason}."


def _doublings(fit: Fit, quantity: str) -> str:
    """Summarise the effect of doubling each variable, from the largest measured values."""
    largest = fit.data.x.max(axis=0)
    now = fit.predict(largest[None])[0].value
    doubled = {name: i for i, name in enumerate(fit.law.variables) if "share" not in name}
    parts = [f"to {_predict_doubled(fit, largest, i):.3g} with twice the {name}" for name, i in doubled.items()]
    return f"Beyond the largest measurement, {quantity_name(quantity)} goes from {now:.3g} {', '.join(parts)}."


def _predict_doubled(fit: Fit, x: Float[np.ndarray, " K"], index: int) -> Interval:
    factor = np.ones_like(x)
    factor[index] = 2
    return fit.predict((x * factor)[None])[0]


def _floor(fit: Fit) -> str:
    floor = fit.parameters.get("E")
    if not floor:
        return ""
    return f"Its floor is {floor:.3g}." if floor.low > 1e-3 else "Its floor is not distinguishable from 0."


def _repetitions(fit: Fit) -> str:
    if "R_D" not in fit.parameters:
        return ""
    return f"Repeating tokens has given most of its benefit after {fit.parameters['R_D']:.3g} repetitions."


def coverage_warning(fit: Fit) -> str:
    """Return a warning if intervals of this law under-cover; empty otherwise."""
    share = under_covering().get(fit.law.name)
    return f"Its 95 % intervals are too narrow: they covered the truth in {share:.0%} of simulations." if share else ""


@cache
def under_covering() -> dict[str, float]:
    """Return the laws whose intervals cover the truth significantly less often than 95 %, with the lowest share.

    The shares are those that bench/coverage.py measured.
    """
    if not COVERAGE.is_file():
        return {}
    measured = files.read_json(COVERAGE)
    threshold = stats.binom.ppf((1 - LEVEL) / 2, measured["fits"], LEVEL) / measured["fits"]
    shares = {name: min(law["held"].values()) for name, law in measured["laws"].items()}
    return {name: share for name, share in shares.items() if share < threshold}
