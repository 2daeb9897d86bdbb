"""A comparison in one sentence: better, worse or not distinguishable, and what would change it."""

import math
from collections.abc import Mapping
from typing import Any

from jaxtempl.evaluation.page import BASELINE_NAMES, COLUMNS
from jaxtempl.evaluation.paired import PairedDifference
from jaxtempl.specs.interval import Interval

LEVEL = 0.05  # of significance, two-sided
QUANTILE, POWER_QUANTILE = 1.960, 0.842  # of the normal distribution at .975, and at .80 for a power of 80 %


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence for the strongest baselines of a result, and one for each compared run."""
    cases = result["counts"]["cases"]
    baselines = {
        top: (f"the {BASELINE_NAMES[name]}", result["baselines"][name]["difference"][top])
        for top, name in result["strongest"].items()
    }
    runs = [{top: (name, d) for top, d in run["difference"].items()} for name, run in result["compared"].items()]
    return [
        *([sentence(baselines, cases, result["learning_curve"])] if baselines else []),
        *(sentence(pairs, cases, {}) for pairs in runs),
    ]


def sentence(
    pairs: Mapping[str, tuple[str, PairedDifference]], cases: int, curves: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return the sentence of one comparison.

    Args:
        pairs: the opponent and the difference to it, for each of top-1, top-3 and top-5.
        cases: number of cases that were compared.
        curves: learning curve of each, if there is one.
    """
    clauses = [_clause(top, *pair, cases, curves.get(top)) for top, pair in pairs.items()]
    return f"This run is {', '.join(clauses[:-1])} and {clauses[-1]}."


def _clause(top: str, opponent: str, difference: PairedDifference, cases: int, curve: Mapping[str, Any] | None) -> str:
    is_distinct, gain = difference.p < LEVEL, difference.value
    outcome = "not distinguishable from" if not is_distinct else "better than" if gain > 0 else "worse than"
    notes = [f"{100 * gain:+.1f} points"]
    if not is_distinct:
        notes.append(_format_cases(difference, cases))
    if gain < 0 and curve:
        notes.append(_format_labels(curve))
    return f"{outcome} {opponent} in {COLUMNS[top]} ({'; '.join(notes)})"


def needed_cases(difference: PairedDifference, cases: int) -> int | None:
    """Return the number of cases at which a true difference of this size is found with a power of 80 %.

    The standard error is that of the interval and shrinks with the root of the number of cases, so the number is
    cases x ((z.975 + z.80) x error / difference)^2 (Cohen 1988, chapter 2). None if no difference was observed.
    """
    if not difference.value:
        return None
    error = (difference.high - difference.low) / (2 * QUANTILE)
    return math.ceil(cases * ((QUANTILE + POWER_QUANTILE) * error / difference.value) ** 2)


def _format_cases(difference: PairedDifference, cases: int) -> str:
    needed = needed_cases(difference, cases)
    if needed is None:
        return f"no difference was observed in {cases:,} cases"
    return f"a difference of this size needs about {_about(needed)} cases, {needed / cases:.1f} times as many"


def _format_labels(curve: Mapping[str, Any]) -> str:
    passes, limit = Interval(*curve["passes"]), f"{curve['limit']:,}"
    if math.isnan(passes.value):
        return f"by its learning curve it stays behind up to {limit} labels, beyond which nothing is predicted"
    low, high = (f"more than {limit}" if math.isnan(bound) else _about(bound) for bound in passes[1:])
    return f"by its learning curve it passes at about {_about(passes.value)} labels [{low}, {high}]"


def _about(count: int | float) -> str:
    """Return a number with two significant digits."""
    whole = round(count)
    return f"{round(whole, 2 - max(len(str(whole)), 2)):,}"
