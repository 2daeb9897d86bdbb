"""Forecasts for a model that the study has not trained: its loss and top-k accuracy, with intervals.

Each quantity uses the law that best predicts the study's largest size from the smaller ones.

Dims: K variables.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxtempl.scaling.columns import ResultRow
from jaxtempl.scaling.laws import catalog, goodness_of_fit, selection
from jaxtempl.scaling.laws.bootstrap import LEVEL
from jaxtempl.scaling.laws.forms import Law
from jaxtempl.scaling.laws.goodness_of_fit import LawAssessment
from jaxtempl.scaling.laws.selection import MISSED
from jaxtempl.specs.interval import Interval

CANDIDATES: dict[str, tuple[Law, ...]] = {
    "domain_loss": (catalog.CHINCHILLA, catalog.KAPLANS),
    **dict.fromkeys(("loss", *MISSED), (catalog.PATH, catalog.JOINT)),
}


class Scenario(NamedTuple):
    """A model to forecast.

    Attributes:
        parameters: Parameters without embedding tables and head.
        tokens: Tokens of its adaptation.
        labels: Labels of its fine-tuning.
    """

    parameters: float
    tokens: float
    labels: float


class Forecaster:
    """Forecasts with the best law of each quantity.

    Args:
        rows: Results of one study.

    Attributes:
        laws: Accepted law by quantity (`domain_loss`, `loss` and the missed shares).
        refused: Reason why no law of a quantity is accepted, by quantity.
        rows: Results that the laws are fitted to.
    """

    def __init__(self, rows: Sequence[ResultRow]) -> None:
        all_seeds = selection.study_rows(rows)
        corpus = selection.main_corpus(all_seeds)
        self.rows = [row for row in selection.comparable(all_seeds) if row["corpus"] == corpus]
        self._seed_scatter = {name: selection.seed_scatter(all_seeds, name) for name in ("loss", *MISSED)}
        best = {quantity: self._best_law(quantity, laws) for quantity, laws in CANDIDATES.items()}
        self.laws = {quantity: law for quantity, law in best.items() if law and not law.rejection}
        self.refused = {quantity: law.rejection for quantity, law in best.items() if law and law.rejection}
        self._left_out: dict[str, float] = {}  # error of an unseen size, by quantity

    def _best_law(self, quantity: str, laws: Sequence[Law]) -> LawAssessment | None:
        assessed = [goodness_of_fit.assess(law, selection.observations(law, self.rows, quantity)) for law in laws]
        candidates = [assessment for assessment in assessed if assessment]
        return goodness_of_fit.best_predicting(candidates) if candidates else None

    def predict(self, scenario: Scenario) -> dict[str, Interval]:
        """Return the forecast of `domain_loss`, `loss`, `top1`, `top3` and `top5`, as far as there are laws."""
        predicted = {quantity: self.predict_quantity(quantity, scenario) for quantity in self.laws}
        return {MISSED.get(name, name): _hit(value) if name in MISSED else value for name, value in predicted.items()}

    def covers(self, quantity: str, scenario: Scenario) -> bool:
        """Return whether the accepted law of a quantity predicts a scenario."""
        law = self.laws.get(quantity)
        return bool(law) and law.covers(_variables(law, scenario))

    def predict_ratio(self, quantity: str, before: Scenario, after: Scenario) -> Interval | None:
        """Return a loss or missed share of one scenario over that of another; None without a law."""
        law = self.laws.get(quantity)
        return law.fit.predict_ratio(_variables(law, before), _variables(law, after)) if law else None

    def influential_cells(self, quantity: str, scenario: Scenario) -> list[tuple[str, float]]:
        """Return the cells with their shares of the total leverage on a forecast, largest first."""
        law = self.laws[quantity]
        weights = np.abs(law.fit.leverage(_variables(law, scenario)))
        kept = [row for row in self.rows if row["start"] == "adapted"]
        names = [kept[i]["cell"] for i in range(len(weights))]
        return sorted(zip(names, (weights / weights.sum()).tolist(), strict=True), key=lambda pair: -pair[1])

    def narrowing(self, quantity: str, scenario: Scenario, candidates: Sequence[Scenario]) -> list[float]:
        """Return the share by which a cell at each candidate narrows the law's standard error at a scenario."""
        law = self.laws[quantity]
        points = np.stack([_variables(law, candidate) for candidate in candidates])
        return law.fit.narrowing(_variables(law, scenario), points).tolist()

    def predict_quantity(self, quantity: str, scenario: Scenario) -> Interval:
        """Return the prediction interval of a loss or missed share for one more cell of any seed.

        It combines the law's interval with the scatter of cells and of seeds, and is at least as wide as the law's
        error on held-out points and, for a size that was not measured, on each size left out.
        """
        law = self.laws[quantity]
        predicted = law.fit.predict(_variables(law, scenario)[None])[0]
        deviation = np.hypot(np.std(law.fit.residuals), self._seed_scatter.get(quantity, 0.0))
        scatter = float(stats.norm.ppf((1 + LEVEL) / 2) * deviation)
        minimum = float(np.log1p(np.nanmax([0.0, law.heldout_error, self._new_size_error(quantity, scenario)])))
        down, up = (
            max(float(np.hypot(np.log(side), scatter)), minimum)
            for side in (predicted.value / predicted.low, predicted.high / predicted.value)
        )
        value = predicted.value
        return Interval(value, value * float(np.exp(-down)), value * float(np.exp(up)))

    def _new_size_error(self, quantity: str, scenario: Scenario) -> float:
        """Return the error of a size that the law has not seen; 0 for a measured one."""
        fit = self.laws[quantity].fit
        if scenario.parameters in fit.data.x[:, 0]:
            return 0.0
        if quantity not in self._left_out:
            self._left_out[quantity] = goodness_of_fit.leave_out_error(fit, 0)
        return self._left_out[quantity]


def _variables(law: LawAssessment, scenario: Scenario) -> Float[np.ndarray, " K"]:
    return np.array([getattr(scenario, variable) for variable in law.fit.law.variables], float)


def _hit(missed: Interval) -> Interval:
    return Interval(1 - missed.value, max(1 - missed.high, 0.0), 1 - missed.low)
