"""Which tokens at one size match another size at T (the paper, section 5.1: 1.4b at 27 B is 2.8b at 3 B)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxtempl.errors import UsageError
from jaxtempl.scaling.laws import data, mixtures
from jaxtempl.scaling.laws.analysis import Finding
from jaxtempl.scaling.laws.catalog import IN_TOKENS
from jaxtempl.scaling.laws.data import Row
from jaxtempl.scaling.laws.fitting import Value
from jaxtempl.scaling.laws.mixtures import Curve


class Equivalent(NamedTuple):
    """Of one size.

    Attributes:
        size: it.
        tokens: of its adaptation that come to the same classification loss; None where none do, or nobody can tell.
        how: in words.
    """

    size: str
    tokens: float | None
    how: str


class Equivalents:
    """Answers for one study, on the corpus and at the labels that most of its cells have.

    Args:
        rows: of its results.
        laws: fitted to them.
    """

    def __init__(self, rows: Sequence[Row], laws: Sequence[Finding]) -> None:
        own = data.comparable(rows)
        corpus, labels = data.main_corpus(own), data.main_labels(own)
        curves = data.curves(own, labels)
        self.curves = {size: _means(rows) for (size, c), rows in sorted(curves.items()) if c == corpus}
        wanted = {law.where: law for law in laws if (law.law, law.quantity) == (IN_TOKENS.name, "loss")}
        self._laws = {size: wanted[size] for size in self.curves if size in wanted}

    def query(self, asked: str) -> list[Equivalent]:
        """For `SIZE@TOKENS`.

        Raises:
            UsageError: it is not of this form, of no size of the study, or of tokens outside its curve.
        """
        size, _, count = asked.partition("@")
        if size not in self.curves:
            raise UsageError(f"--match={asked!r}: the study has curves of {', '.join(self.curves) or 'no size'}")
        tokens, losses = self.curves[size]
        try:
            at = float(count)
        except ValueError:
            raise UsageError(f"--match={asked!r} is not SIZE@TOKENS, such as {size}@{tokens[-1]:.0f}") from None
        if not tokens[0] <= at <= tokens[-1]:
            raise UsageError(
                f"--match={asked!r}: {size} was measured from {tokens[0]:,.0f} to {tokens[-1]:,.0f} tokens"
            )
        return self.matching(size, float(np.interp(np.log(at), np.log(tokens), losses)))

    def matching(self, size: str, loss: float) -> list[Equivalent]:
        """Tokens of every other size for a loss."""
        return [self._of(other, loss) for other in self.curves if other != size]

    def _of(self, size: str, loss: float) -> Equivalent:
        tokens, losses = self.curves[size]
        if losses[0] <= loss:
            return Equivalent(size, float(tokens[0]), "at its first checkpoint, or before")
        if losses.min() <= loss:
            return Equivalent(size, mixtures.needed(self.curves[size], loss), "by its measured curve")
        law = self._laws.get(size)
        if not law or law.refused:
            return Equivalent(size, None, "not by its last checkpoint, and no law tells further")
        found = mixtures.equivalent_tokens(law.fit, Value(loss, loss, loss))
        return Equivalent(size, found, "by its law" if found else "never, by its law: its floor is above")


def _means(rows: Sequence[Row]) -> Curve:
    """Mean classification loss over seeds by tokens of the adaptation."""
    kept = [row for row in rows if row["tokens"]]
    tokens = sorted({row["tokens"] for row in kept})
    means = [np.mean([row["loss"] for row in kept if row["tokens"] == one]) for one in tokens]
    return np.array(tokens, float), np.array(means, float)
