"""A confidence sequence: an interval that holds at every look, so that a test may be stopped for safety.

The asymptotic confidence sequence of Waudby-Smith et al. (2021, arXiv 2103.06476) uses the normal mixture of Robbins
(1970): the estimate over its squared standard error is a sum with the intrinsic time 1 / se^2 (Howard et al. 2021).
The decision of a test is one look at its end; the sequence is wider there by about a half.
"""

import math

from jaxtempl.errors import UserError
from jaxtempl.experiments.estimators import Estimate
from jaxtempl.specs.interval import Interval

ALPHA = 0.05  # probability that the sequence ever misses the truth


def mixture_scale(time: float, alpha: float = ALPHA) -> float:
    """Return the scale of the mixture whose bound is about the narrowest at an intrinsic time.

    Howard et al. (2021, Proposition 3), with the first-order expansion of Lambert's W.
    """
    logarithm = 2 * math.log(1 / alpha)
    return time / (logarithm + math.log(1 + logarithm))


def mixture_bound(time: float, scale: float, alpha: float = ALPHA) -> float:
    """Return the bound that a sum with this intrinsic time ever crosses with probability `alpha`, on either side."""
    return math.sqrt((time + scale) * math.log((time + scale) / (scale * alpha**2)))


def confidence_sequence(estimate: Estimate, planned_se: float) -> Interval:
    """Return the interval of one look; all looks together miss the truth in 5 % of experiments.

    Args:
        estimate: Clustered estimate of all data up to the look.
        planned_se: Standard error expected at the end, fixed before the first look, where the sequence is narrowest.

    Raises:
        UserError: The planned standard error is not positive.
    """
    if not planned_se > 0:
        raise UserError(f"the planned standard error is {planned_se}, and must be above 0; take it from the plan")
    time = 1 / estimate.se**2
    margin = mixture_bound(time, mixture_scale(1 / planned_se**2)) / time
    return Interval(estimate.value, estimate.value - margin, estimate.value + margin)
