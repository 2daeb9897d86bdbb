"""The laws that a study may follow, each with the results that it is fitted to."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxtempl.scaling.columns import TOP_K, ResultRow
from jaxtempl.scaling.laws import catalog, selection, special_forms
from jaxtempl.scaling.laws.forms import Law
from jaxtempl.scaling.laws.selection import MISSED

GENERAL_MIXTURE = dataclasses.replace(catalog.MIXTURE, variables=("parameters", "tokens", "general share"))
MIN_RELATIVE_ALIGNMENT = 0.5  # of a domain corpus, relative to the main corpus's alignment
POOLED_SUBSETS = ("all sizes", "adapted to the end", "all mixtures", "all pure corpora")


class Hypothesis(NamedTuple):
    """A law that some results may follow.

    Attributes:
        law: Law.
        quantity: Column of the results, or a missed share.
        subset: Name of the selected results.
        rows: Selected results.
    """

    law: Law
    quantity: str
    subset: str
    rows: Sequence[ResultRow]


def hypotheses(rows: Sequence[ResultRow]) -> Iterator[Hypothesis]:
    """Yield every law with the results that it may describe."""
    all_sizes, end, *_ = POOLED_SUBSETS
    corpus, labels = selection.main_corpus(rows), selection.main_labels(rows)
    main = [row for row in rows if row["corpus"] == corpus]
    last = [row for row in main if row["adapt_step"] == row["adapt_steps"]]
    for law in (catalog.CHINCHILLA, catalog.KAPLANS, catalog.IN_COMPUTE):
        yield Hypothesis(law, "domain_loss", all_sizes, main)
    yield Hypothesis(catalog.IN_PARAMETERS, "domain_loss", end, last)
    for quantity in ("loss", *MISSED):
        yield Hypothesis(catalog.PATH, quantity, all_sizes, main)
        yield Hypothesis(catalog.JOINT, quantity, end, last)
    for size in selection.sizes(main):
        of_size = [row for row in main if row["size"] == size]
        yield from _in_tokens(size, [row for row in of_size if row["labels"] == labels])
        for law in (catalog.IN_LABELS, special_forms.RECTIFIED):
            yield Hypothesis(law, "loss", size, [row for row in of_size if row in last])
    yield from _across_corpora(rows)


def _in_tokens(size: str, rows: Sequence[ResultRow]) -> Iterator[Hypothesis]:
    """Yield the laws of one size in tokens."""
    for quantity in ("domain_loss", "loss"):
        yield Hypothesis(catalog.IN_TOKENS, quantity, size, rows)
    for quantity in TOP_K:
        yield Hypothesis(special_forms.LOG_POWER, quantity, size, rows)
        yield Hypothesis(special_forms.SATURATING, quantity, size, rows)


def _across_corpora(rows: Sequence[ResultRow]) -> Iterator[Hypothesis]:
    """Yield the laws of mixtures and of repeated tokens, which need several corpora."""
    rows = domain_and_general([row for row in rows if row["start"] == "adapted"])
    shares = {row["domain_weight"] for row in rows}
    if len(shares) > 2:
        yield Hypothesis(catalog.MIXTURE, "domain_loss", POOLED_SUBSETS[2], rows)
        yield Hypothesis(GENERAL_MIXTURE, "general_loss", POOLED_SUBSETS[2], rows)
    pure = [row for row in rows if row["domain_weight"] == 1]
    if any(row["tokens"] > row["unique_tokens"] for row in pure):
        yield Hypothesis(special_forms.DATA_CONSTRAINED, "domain_loss", POOLED_SUBSETS[3], pure)
        for size in selection.sizes(pure):
            of_size = [row for row in pure if row["size"] == size]
            yield Hypothesis(special_forms.REPEATED, "domain_loss", f"{size}, pure corpora", of_size)


def domain_and_general(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Drop corpora that are neither domain nor general text: those that share too few n-grams with the task."""
    alignment = {row["corpus"]: row["alignment"] for row in rows if row["alignment"] is not None}
    minimum = MIN_RELATIVE_ALIGNMENT * alignment.get(selection.main_corpus(rows), 0.0)
    return [row for row in rows if row["domain_weight"] < 1 or alignment.get(row["corpus"], minimum) >= minimum]
