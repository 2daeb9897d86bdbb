"""Checks that come before a verdict: sample ratio, reassigned pairs, lost events, clocks, use of templates.

A failed check withholds the verdict; each states what it found.

Dims: P pairs, N rows, K arms.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from jaxtempl.errors import UserError
from jaxtempl.experiments import estimators
from jaxtempl.experiments.estimators import ClusterSums

MISMATCH = 0.001  # p-value below which a ratio is not that of the weights (Fabijan et al. 2019)
MIN_EXPECTED = 5.0  # pairs of each arm from which chi-square holds (Cochran 1954)
MAX_BAD_EVENTS = 0.01  # share of lost, misordered or misdated events that a verdict tolerates
SKEW = 2.0  # seconds that an action may be after its arrival at the server
RATE_P = 0.01  # p-value below which the arms use templates at different rates


class Check(NamedTuple):
    """A check and what it found.

    Attributes:
        name: Name of the check.
        passed: Whether a verdict may be given.
        finding: One line: what was found, and what to do if it did not pass.
    """

    name: str
    passed: bool
    finding: str


def ratio_p(counts: Sequence[int], weights: Sequence[float]) -> float:
    """Return the p-value of Pearson's chi-square of counts against weights.

    Raises:
        UserError: An arm expects fewer than five pairs, a weight is not positive, or the lengths differ.
    """
    if len(counts) != len(weights) or len(counts) < 2 or min(weights) <= 0:
        raise UserError(f"{len(counts)} arms have the weights {list(weights)}; each arm needs one above 0")
    expected = sum(counts) * np.array(weights) / sum(weights)
    if expected.min() < MIN_EXPECTED:
        raise UserError(
            f"an arm expects {expected.min():.1f} pairs, and chi-square needs {MIN_EXPECTED:g}: wait for more"
        )
    return float(stats.chisquare(counts, expected).pvalue)


def sample_ratio(counts: Mapping[str, int], weights: Mapping[str, float]) -> Check:
    """Check the pairs of each arm against the configured weights.

    Args:
        counts: Pairs of each arm that has any.
        weights: Configured weight of every arm.

    Raises:
        UserError: An arm is not configured, or as for `ratio_p`.
    """
    if unknown := sorted(set(counts) - set(weights)):
        raise UserError(f"pairs have the arm {unknown[0]!r}; the configured arms are {', '.join(weights)}")
    p = ratio_p([counts.get(arm, 0) for arm in weights], list(weights.values()))
    share = ", ".join(
        f"{arm} {counts.get(arm, 0):,} ({weights[arm] / sum(weights.values()):.1%} due)" for arm in weights
    )
    cause = "" if p >= MISMATCH else "; pairs are lost or assigned otherwise than configured: find the cause first"
    return Check("sample ratio", p >= MISMATCH, f"{share}, p = {p:.2g}{cause}")


def sample_ratio_within(
    name: str, groups: np.ndarray, arms: Int[np.ndarray, " P"], weights: Float[np.ndarray, " K"]
) -> Check:
    """Check the pairs of each arm within groups, such as weeks or advocates.

    The level is divided by the number of groups (Bonferroni), so that many of them raise no more false alarms than one.
    Groups that expect fewer than five pairs in an arm are not tested.

    Args:
        name: Name of the grouping.
        groups: Group of each pair.
        arms: Arm of each pair, from 0.
        weights: Configured weight of each arm.
    """
    labels, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(labels), len(weights)), int)
    np.add.at(counts, (group, arms), 1)
    tested = counts.sum(1) * weights.min() / weights.sum() >= MIN_EXPECTED
    left_out = f"; {int((~tested).sum())} with few pairs not tested" if not tested.all() else ""
    if not tested.any():
        return Check(f"sample ratio by {name}", True, f"0 of {len(labels)} tested{left_out}")
    values = [ratio_p(row.tolist(), weights.tolist()) for row in counts[tested]]
    worst = int(np.argmin(values))
    passed = values[worst] >= MISMATCH / len(values)
    finding = f"{len(values)} tested, smallest p = {values[worst]:.2g} ({name} {labels[tested][worst]}){left_out}"
    return Check(f"sample ratio by {name}", passed, finding)


def reassigned_pairs(pairs: Int[np.ndarray, " N"], arms: Int[np.ndarray, " N"]) -> Check:
    """Check that each pair was seen in one arm.

    Args:
        pairs: Pair of each row, from 0.
        arms: Arm of each row, from 0.
    """
    seen = np.unique(np.column_stack([pairs, arms]), axis=0)[:, 0]
    total, mixed = len(np.unique(seen)), int((np.unique(seen, return_counts=True)[1] > 1).sum())
    cause = "; servers differ in their experiments file, or ids are reused" if mixed else ""
    return Check("pairs in one arm", not mixed, f"{mixed:,} of {total:,} pairs are in several arms{cause}")


def complete_events(replies: int, missing: int, early: int) -> Check:
    """Check that replies have a start, and come after it.

    Args:
        replies: Number of replies.
        missing: Replies whose opening of the reply box is missing.
        early: Replies that precede it.
    """
    share = (missing + early) / max(replies, 1)
    finding = f"{missing:,} of {replies:,} replies have no start, {early:,} precede it"
    cause = "" if share <= MAX_BAD_EVENTS else "; events are lost, or sent with another suggestion's id"
    finding += f" ({share:.2%}; up to {MAX_BAD_EVENTS:.0%} passes)"
    return Check("complete events", share <= MAX_BAD_EVENTS, finding + cause)


def clock_skew(suggestions: int, ahead: int) -> Check:
    """Check that actions do not come from the future, which a client's wrong clock shows.

    Args:
        suggestions: Number of suggestions.
        ahead: Suggestions with an event whose time is over 2 s after its arrival at the server.
    """
    share = ahead / max(suggestions, 1)
    finding = f"{ahead:,} of {suggestions:,} suggestions have events over {SKEW:g} s ahead of the server ({share:.2%})"
    return Check("clocks", share <= MAX_BAD_EVENTS, finding)


def template_use(sums: ClusterSums) -> Check:
    """Check that both arms send a template equally often; a selection time exists only where one was chosen.

    Args:
        sums: Replies with a template, and all replies, by advocate.

    Raises:
        UserError: An arm has replies of fewer than two advocates.
    """
    rates = sums.totals.sum(0) / np.maximum(sums.weights.sum(0), 1)
    finding = f"{rates[0]:.1%} and {rates[1]:.1%} of replies are templates"
    if _is_constant(sums):
        return Check("template use", bool(rates[0] == rates[1]), finding)
    p = estimators.difference(sums).p
    cause = "" if p >= RATE_P else "; compare the time of all replies, since selection times are of other replies"
    return Check("template use", p >= RATE_P, f"{finding}, p = {p:.2g}{cause}")


def _is_constant(sums: ClusterSums) -> bool:
    """Return whether every reply, or none, is a template in each arm."""
    return all(
        math.isclose(total, 0) or total == weight
        for total, weight in zip(sums.totals.sum(0), sums.weights.sum(0), strict=True)
    )
