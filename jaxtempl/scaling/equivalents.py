"""Equivalent tokens: how many tokens another size needs for the same loss.

The paper, section 5.1, finds that 1.4b at 27 B tokens matches 2.8b at 3 B.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxtempl.errors import UsageError
from jaxtempl.scaling.columns import ResultRow
from jaxtempl.scaling.laws import mixtures, selection
from jaxtempl.scaling.laws.analysis import LawResult
from jaxtempl.scaling.laws.catalog import IN_TOKENS
from jaxtempl.scaling.laws.mixtures import LossCurve


class Equivalent(NamedTuple):
    """The tokens at which one size matches a classification loss.

    Attributes:
        size: Size of the model.
        tokens: Tokens of its adaptation; None if it never reaches the loss, or if that is unknown.
        method: How the tokens were determined.
    """

    size: str
    tokens: float | None
    method: str


class Equivalents:
    """Answers queries about one study, on its main corpus and at its main number of labels.

    Args:
        rows: Results of the study.
        laws: Laws fitted to the results.
    """

    def __init__(self, rows: Sequence[ResultRow], laws: Sequence[LawResult]) -> None:
        rows = selection.comparable(rows)
        main, labels = selection.main_corpus(rows), selection.main_labels(rows)
        curves = selection.curves(rows, labels)
        self.curves = {size: _mean_curve(curve) for (size, corpus), curve in sorted(curves.items()) if corpus == main}
        in_tokens = {law.subset: law for law in laws if (law.law, law.quantity) == (IN_TOKENS.name, "loss")}
        self._laws = {size: in_tokens[size] for size in self.curves if size in in_tokens}

    def query(self, match: str) -> list[Equivalent]:
        """Answer a query `SIZE@TOKENS`.

        Raises:
            UsageError: The query has another form, names an unknown size, or tokens outside the size's curve.
        """
        size, _, count = match.partition("@")
        if size not in self.curves:
            raise UsageError(f"--match={match!r}: the study has curves of {', '.join(self.curves) or 'no size'}")
        tokens, losses = self.curves[size]
        try:
            at = float(count)
        except ValueError:
            raise UsageError(f"--match={match!r} is not SIZE@TOKENS, such as {size}@{tokens[-1]:.0f}") from None
        if not tokens[0] <= at <= tokens[-1]:
            raise UsageError(
                f"--match={match!r}: {size} was measured from {tokens[0]:,.0f} to {tokens[-1]:,.0f} tokens"
            )
        return self.matching(size, float(np.interp(np.log(at), np.log(tokens), losses)))

    def matching(self, size: str, loss: float) -> list[Equivalent]:
        """Return the tokens at which every other size reaches a loss."""
        return [self._match(other, loss) for other in self.curves if other != size]

    def _match(self, size: str, loss: float) -> Equivalent:
        tokens, losses = self.curves[size]
        if losses[0] <= loss:
            return Equivalent(size, float(tokens[0]), "at or before its first checkpoint")
        if losses.min() <= loss:
            return Equivalent(size, mixtures.tokens_to_reach(self.curves[size], loss), "by its measured curve")
        law = self._laws.get(size)
        if not law or law.rejection:
            return Equivalent(size, None, "not by its last checkpoint, and no law extrapolates further")
        equivalent = mixtures.equivalent_tokens(law.fit, loss)
        return Equivalent(size, equivalent, "by its law" if equivalent else "never: the floor of its law is above")


def _mean_curve(rows: Sequence[ResultRow]) -> LossCurve:
    """Return the mean classification loss over seeds against tokens of the adaptation."""
    adapted = [row for row in rows if row["tokens"]]
    tokens = sorted({row["tokens"] for row in adapted})
    means = [np.mean([row["loss"] for row in adapted if row["tokens"] == count]) for count in tokens]
    return np.array(tokens, float), np.array(means, float)
