"""What the laws of a study say of a model that it has not trained: its loss and its top-k, with intervals.

Of each quantity the law is taken that foretells the study's largest size best when it is shown the others.

Dims: K variables.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxtempl.scaling.laws import catalog, data, goodness_of_fit
from jaxtempl.scaling.laws.data import MISSED, Row
from jaxtempl.scaling.laws.fitting import LEVEL, Value
from jaxtempl.scaling.laws.forms import Law
from jaxtempl.scaling.laws.goodness_of_fit import Judged

CANDIDATES: dict[str, tuple[Law, ...]] = {
    "domain_loss": (catalog.CHINCHILLA, catalog.KAPLANS),
    **dict.fromkeys(("loss", *MISSED), (catalog.PATH, catalog.JOINT)),
}


class Point(NamedTuple):
    """A model to be trained.

    Attributes:
        parameters: without tables and head.
        tokens: of its adaptation.
        labels: to fine-tune on.
    """

    parameters: float
    tokens: float
    labels: float


class Outlook:
    """The best law of each quantity.

    Args:
        rows: of one study.

    Attributes:
        laws: by quantity: `domain_loss`, `loss`, and the shares missed; those alone that there are points enough for.
        rows: that they are of.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        own = data.own(rows)
        corpus = data.main_corpus(own)
        self.rows = [row for row in data.comparable(own) if row["corpus"] == corpus]
        self._seeds = {quantity: data.seed_scatter(own, quantity) for quantity in ("loss", *MISSED)}
        found = {quantity: self._best(quantity, laws) for quantity, laws in CANDIDATES.items()}
        self.laws = {quantity: law for quantity, law in found.items() if law}

    def _best(self, quantity: str, laws: Sequence[Law]) -> Judged | None:
        judged = [goodness_of_fit.judge(law, data.points(law, self.rows, quantity), order=0) for law in laws]
        candidates = [found for found in judged if found]
        return goodness_of_fit.chosen(candidates) if candidates else None

    def at(self, point: Point) -> dict[str, Value]:
        """What is foretold: `domain_loss`, `loss`, `top1`, `top3`, `top5`, as far as there are laws."""
        said = {quantity: self._said(quantity, point) for quantity in self.laws}
        return {MISSED.get(name, name): _hit(value) if name in MISSED else value for name, value in said.items()}

    def change(self, quantity: str, point: Point, then: Point) -> Value | None:
        """A loss or a share missed at another point over that at one; None where there is no law of it."""
        found = self.laws.get(quantity)
        return found.fit.ratio(_x(found, point), _x(found, then)) if found else None

    def leans_on(self, quantity: str, point: Point) -> list[tuple[str, float]]:
        """The cells that move what is foretold the most, and their share of all that can move it."""
        found = self.laws[quantity]
        weights = np.abs(found.fit.leverage(_x(found, point)))
        kept = [row for row in self.rows if row["start"] == "adapted"]
        names = [kept[i]["cell"] for i in range(len(weights))]
        return sorted(zip(names, (weights / weights.sum()).tolist(), strict=True), key=lambda pair: -pair[1])

    def _said(self, quantity: str, point: Point) -> Value:
        """For one more cell, of any seed: the law's own interval, with the scatter of cells around it and of seeds.

        Or what it was off by on sizes that it was not shown, where that is wider.
        """
        found = self.laws[quantity]
        said = found.fit.predict(_x(found, point)[None])[0]
        deviation = np.hypot(np.std(found.fit.residuals), self._seeds.get(quantity, 0.0))
        scatter = float(stats.norm.ppf((1 + LEVEL) / 2) * deviation)
        off = float(np.log1p(np.nan_to_num(found.foretold)))
        down, up = (
            max(float(np.hypot(np.log(side), scatter)), off) for side in (said.value / said.low, said.high / said.value)
        )
        return Value(said.value, said.value * float(np.exp(-down)), said.value * float(np.exp(up)))


def _x(found: Judged, point: Point) -> Float[np.ndarray, " K"]:
    return np.array([getattr(point, variable) for variable in found.fit.law.variables], float)


def _hit(missed: Value) -> Value:
    return Value(1 - missed.value, max(1 - missed.high, 0.0), 1 - missed.low)
