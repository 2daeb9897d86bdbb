"""Relate the saving of each template to its accuracy in the holdout: the paper's Figure 6.

Both axes are computed from the same rows of the holdout, and each is noisy. The reliabilities of both axes state how
much order a figure can show, and the correlation across halves of the advocates shares no rows.

Dims: G advocates, T templates.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxtempl.errors import UserError
from jaxtempl.experiments import trend
from jaxtempl.experiments.lifetime import is_held
from jaxtempl.experiments.sums import Aggregate
from jaxtempl.experiments.trend import MannKendall
from jaxtempl.specs.interval import Interval

TOP = 300  # templates of most volume (section 5.3)
SPLITS = 100  # random halves of the advocates

PerTemplate = Float[np.ndarray, " T"]


class TemplatePoint(NamedTuple):
    """A template of Figure 6.

    Attributes:
        template: Template id.
        holdout: Choices of it in the holdout.
        treatment: Choices of it in the treatment.
        accuracy: Share of the holdout's choices that the withheld five contain.
        saving: Mean time of the holdout minus that of the treatment, in seconds.
    """

    template: str
    holdout: int
    treatment: int
    accuracy: float
    saving: float


class TemplateTrend(NamedTuple):
    """The trend of Figure 6.

    Attributes:
        points: Templates of most volume that both groups chose.
        test: Mann-Kendall test of the saving along the accuracy, with ties in both.
        tau: Kendall's tau-b with its bootstrap interval over advocates.
        accuracy_reliability: Split-half reliability of the accuracy.
        saving_reliability: Split-half reliability of the saving.
        tau_across_halves: Mean tau-b of one half's accuracy and the other half's saving.
    """

    points: list[TemplatePoint]
    test: MannKendall
    tau: Interval
    accuracy_reliability: float
    saving_reliability: float
    tau_across_halves: float


class TemplateTable(NamedTuple):
    """Sums by advocate and template: the holdout's choices, agreements and seconds, and the treatment's."""

    held: Float[np.ndarray, "G T"]
    held_agreed: Float[np.ndarray, "G T"]
    held_seconds: Float[np.ndarray, "G T"]
    shown: Float[np.ndarray, "G T"]
    shown_seconds: Float[np.ndarray, "G T"]

    def accuracies(self, weights: Float[np.ndarray, " G"]) -> PerTemplate:
        """Return the accuracy of each template over advocates that count `weights` times; NaN without choices."""
        return _ratio(weights @ self.held_agreed, weights @ self.held)

    def savings(self, weights: Float[np.ndarray, " G"]) -> PerTemplate:
        """Return the saving of each template, in seconds; NaN where a group has no choices."""
        shown = _ratio(weights @ self.shown_seconds, weights @ self.shown)
        return _ratio(weights @ self.held_seconds, weights @ self.held) - shown


def template_trend(found: Aggregate, top: int = TOP) -> TemplateTrend:
    """Return the trend of the saving along the accuracy over the templates of most volume (Figure 6).

    Raises:
        UserError: Both groups chose fewer than three common templates, or there are fewer than four advocates.
    """
    names, sums = _most_chosen(found, top)
    clusters = len(sums.held)
    every = np.ones(clusters)
    accuracies, savings = sums.accuracies(every), sums.savings(every)
    counts = zip(names, sums.held.sum(0).astype(int), sums.shown.sum(0).astype(int), accuracies, savings, strict=True)
    points = [TemplatePoint(name, int(h), int(t), float(a), float(s)) for name, h, t, a, s in counts]
    return TemplateTrend(
        points,
        trend.mann_kendall(savings, accuracies),
        trend.bootstrap_interval(
            lambda weights: _tau(sums.accuracies(weights), sums.savings(weights)), clusters, centred=True
        ),
        trend.split_half_reliability(lambda weights: _filled(sums.accuracies(weights)), clusters, splits=SPLITS),
        trend.split_half_reliability(lambda weights: _filled(sums.savings(weights)), clusters, splits=SPLITS),
        _tau_across_halves(sums),
    )


def _most_chosen(found: Aggregate, top: int) -> tuple[list[str], TemplateTable]:
    """Return the templates of most volume that both groups chose, and their sums."""
    rows, held = found.templates_chosen, is_held(found, found.templates_chosen.arm)
    shape = (len(found.advocates), len(found.templates))
    cell = rows.advocate * shape[1] + rows.template

    def table(values: np.ndarray, group: np.ndarray) -> Float[np.ndarray, "G T"]:
        return np.bincount(cell, values * group, shape[0] * shape[1]).reshape(shape)

    withheld = (table(values, held) for values in (rows.selections, rows.hits_5, rows.seconds))
    sums = TemplateTable(*withheld, *(table(values, ~held) for values in (rows.selections, rows.seconds)))
    volume = (sums.held + sums.shown).sum(0)
    common = (sums.held.sum(0) > 0) & (sums.shown.sum(0) > 0)
    kept = [int(one) for one in np.argsort(-volume, kind="stable")[:top] if common[one]]
    if len(kept) < 3:
        raise UserError(
            f"both groups chose {len(kept)} common templates; a trend needs three or more: wait for more data"
        )
    return [found.templates[one] for one in kept], TemplateTable(*(each[:, kept] for each in sums))


def _tau_across_halves(sums: TemplateTable) -> float:
    random, clusters, found = np.random.default_rng(0), len(sums.held), list[float]()
    for _ in range(SPLITS):
        half = (random.permutation(clusters) < clusters // 2).astype(float)
        found.append(_tau(sums.accuracies(half), sums.savings(1 - half)))
    return float(np.mean(found))


def _tau(accuracies: PerTemplate, savings: PerTemplate) -> float:
    """Return Kendall's tau-b over the templates with both values; NaN if there are none."""
    known = np.isfinite(accuracies) & np.isfinite(savings)
    found: Any = stats.kendalltau(accuracies[known], savings[known])
    return float(found.statistic)


def _filled(values: PerTemplate) -> PerTemplate:
    """Return values with the mean of the others where a half has no choice, which can only lower a reliability."""
    known = np.isfinite(values)
    return np.where(known, values, values[known].mean()) if known.any() else values


def _ratio(totals: PerTemplate, weights: PerTemplate) -> PerTemplate:
    return np.divide(totals, weights, out=np.full(len(totals), np.nan), where=weights > 0)
