"""All laws of a study: each fitted to the results that it is of, judged, and put in words."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jaxtempl.scaling.laws import catalog, curves, data, goodness_of_fit, mixtures, regression, summaries, trends
from jaxtempl.scaling.laws.data import MISSED, Row
from jaxtempl.scaling.laws.fitting import Fit, Value
from jaxtempl.scaling.laws.forms import Law
from jaxtempl.scaling.laws.mixtures import Curve, Efficiency
from jaxtempl.scaling.laws.regression import Line, Test
from jaxtempl.scaling.results import TOP

OF_GENERAL = dataclasses.replace(catalog.MIXTURE, variables=("parameters", "tokens", "general share"))
NEAR = 0.5  # of the main corpus's alignment, that a corpus of the domain has at least
GUARD = 0.1  # of the base's general loss, by which it may grow


class Question(NamedTuple):
    """A law that some results may follow.

    Attributes:
        law: it.
        quantity: a column of the results, or a share missed.
        where: which results, in words.
        rows: these.
    """

    law: Law
    quantity: str
    where: str
    rows: Sequence[Row]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of a question.

    Attributes:
        law: name of the law.
        formula: of it.
        source: where it is from.
        quantity: what it is of.
        where: which results.
        points: how many.
        parameters: with intervals.
        r2: share of the variance of the quantity's logarithm that it explains.
        foretold: mean relative error on the last quarter of the points, when fitted to the others.
        refused: why it is no law here; empty where it is.
        says: a sentence.
        fit: what drew it.
    """

    law: str
    formula: str
    source: str
    quantity: str
    where: str
    points: int
    parameters: dict[str, Value]
    r2: float
    foretold: float
    refused: str
    says: str
    fit: Fit


class Pair(NamedTuple):
    """Classification loss against language-model loss (Figure 3c): one line for all, one a size, and which is right."""

    pooled: Line | None
    by_size: dict[str, Line]
    test: Test | None


class Trends(NamedTuple):
    """Of one curve against tokens: what loss and top-k do, and whether loss improves and top-1 does not."""

    size: str
    corpus: str
    directions: dict[str, str]
    misaligned: bool


class Worth(NamedTuple):
    """One corpus beside another: how many times its tokens the other takes for the same domain loss, by size."""

    special: str
    general: str
    ratio: Efficiency


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that a study's results say."""

    laws: list[Finding]
    loss_to_loss: Pair
    one_curve: dict[str, Test]
    trends: list[Trends]
    forgetting: dict[str, Line]
    worth: list[Worth]
    critical: dict[str, float | None]


def of(rows: Sequence[Row]) -> Findings:
    """Fits everything; shows how far it is."""
    own = data.comparable(rows)
    asked = list(questions(own))
    bar = tqdm(asked, "laws", file=sys.stderr, disable=None)
    adaptations = _adaptations(own)
    tests = _one_curve(adaptations)
    found = [_pooled(finding, tests) for question in bar if (finding := answer(question))]
    drawn = data.curves(own, data.main_labels(own))
    return Findings(
        found,
        _loss_to_loss(adaptations),
        tests,
        curve_trends(own),
        _forgetting(drawn),
        _worth(drawn),
        _critical(own, found),
    )


def questions(rows: Sequence[Row]) -> Iterator[Question]:
    """Every law with the results that it may be of."""
    corpus, labels = data.main_corpus(rows), data.main_labels(rows)
    main = [row for row in rows if row["corpus"] == corpus]
    last = [row for row in main if row["adapt_step"] == row["adapt_steps"]]
    for law in (catalog.CHINCHILLA, catalog.KAPLANS, catalog.IN_COMPUTE):
        yield Question(law, "domain_loss", "all sizes", main)
    yield Question(catalog.IN_PARAMETERS, "domain_loss", "adapted to the end", last)
    for quantity in ("loss", *MISSED):
        yield Question(catalog.PATH, quantity, "all sizes", main)
        yield Question(catalog.JOINT, quantity, "adapted to the end", last)
    for size in data.sizes(main):
        own = [row for row in main if row["size"] == size]
        yield from _of_size(size, [row for row in own if row["labels"] == labels])
        for law in (catalog.IN_LABELS, curves.RECTIFIED):
            yield Question(law, "loss", size, [row for row in own if row in last])
    yield from _of_corpora(rows)


def _of_size(size: str, rows: Sequence[Row]) -> Iterator[Question]:
    """Against tokens."""
    for quantity in ("domain_loss", "loss"):
        yield Question(catalog.IN_TOKENS, quantity, size, rows)
    for quantity in TOP:
        yield Question(curves.LOG_POWER, quantity, size, rows)
        yield Question(curves.SATURATING, quantity, size, rows)


def _of_corpora(rows: Sequence[Row]) -> Iterator[Question]:
    """Laws of mixtures, and of tokens that are read again: those of several corpora."""
    rows = _of_the_domain([row for row in rows if row["start"] == "adapted"])
    shares = {row["domain_weight"] for row in rows}
    if len(shares) > 2:
        yield Question(catalog.MIXTURE, "domain_loss", "all mixtures", rows)
        yield Question(OF_GENERAL, "general_loss", "all mixtures", rows)
    pure = [row for row in rows if row["domain_weight"] == 1]
    if any(row["tokens"] > row["unique_tokens"] for row in pure):
        for size in data.sizes(pure):
            kept = [row for row in pure if row["size"] == size]
            yield Question(curves.REPEATED, "domain_loss", f"{size}, pure corpora", kept)


def _of_the_domain(rows: Sequence[Row]) -> list[Row]:
    """Without corpora of neither the domain nor the general text: those that have too little of the task's n-grams."""
    known = {row["corpus"]: row["alignment"] for row in rows if row["alignment"] is not None}
    least = NEAR * known.get(data.main_corpus(rows), 0.0)
    return [row for row in rows if row["domain_weight"] < 1 or known.get(row["corpus"], least) >= least]


def answer(question: Question) -> Finding | None:
    """Fits and judges; None where there are too few points."""
    found = goodness_of_fit.judge(question.law, data.points(question.law, question.rows, question.quantity))
    if not found:
        return None
    law, fit = question.law, found.fit
    return Finding(
        law=law.name,
        formula=law.formula,
        source=law.source,
        quantity=question.quantity,
        where=question.where,
        points=len(fit.data.y),
        parameters=fit.parameters,
        r2=fit.r2,
        foretold=found.foretold,
        refused=found.refused,
        says=summaries.sentence(found, question.quantity),
        fit=fit,
    )


def _pooled(finding: Finding, tests: Mapping[str, Test]) -> Finding:
    """A law in compute alone is none where sizes have curves of their own."""
    test = tests.get(finding.quantity)
    if finding.law != catalog.IN_COMPUTE.name or finding.refused or not test or test.p >= goodness_of_fit.LEFT_OVER:
        return finding
    why = f"each size has a curve of its own (F = {test.f:.1f}, p = {test.p:.2g})"
    return dataclasses.replace(finding, refused=why, says=summaries.no_law(why))


def _adaptations(rows: Sequence[Row]) -> list[Row]:
    """Checkpoints of the main corpus at the main number of labels, of all sizes."""
    labels, corpus = data.main_labels(rows), data.main_corpus(rows)
    return [row for row in rows if row["labels"] == labels and row["corpus"] == corpus]


def _loss_to_loss(rows: Sequence[Row]) -> Pair:
    kept = [row for row in rows if row["domain_loss"]]
    names = data.sizes(kept)
    x, y = (np.array([row[column] for row in kept], float) for column in ("domain_loss", "loss"))
    size = np.array([names.index(row["size"]) for row in kept], int)
    by_size = {name: regression.line(x[size == i], y[size == i]) for i, name in enumerate(names)}
    return Pair(
        regression.line(x, y), {name: line for name, line in by_size.items() if line}, regression.one_line(x, y, size)
    )


def _one_curve(rows: Sequence[Row]) -> dict[str, Test]:
    """Whether one curve in compute serves all sizes, by quantity."""
    found: dict[str, Test | None] = {}
    for quantity in ("domain_loss", "loss"):
        points = data.points(catalog.IN_COMPUTE, rows, quantity)
        size = data.points(catalog.IN_PARAMETERS, rows, quantity).x[:, 0]
        found[quantity] = regression.one_curve(catalog.IN_COMPUTE, points, np.unique(size, return_inverse=True)[1])
    return {quantity: test for quantity, test in found.items() if test}


Drawn = dict[tuple[str, str], list[Row]]


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], float)


def curve_trends(rows: Sequence[Row]) -> list[Trends]:
    """What each curve of a study's own rows does."""
    found: list[Trends] = []
    for (size, corpus), curve in data.curves(rows, data.main_labels(rows)).items():
        tokens, loss, first = (_column(curve, name) for name in ("tokens", "loss", "top1"))
        directions = {name: trends.trend(tokens, _column(curve, name)).direction for name in ("loss", *TOP)}
        found.append(Trends(size, corpus, directions, trends.misaligned(tokens, loss, first)))
    return found


def _forgetting(drawn: Drawn) -> dict[str, Line]:
    """By size and corpus: general loss gained over domain loss won."""
    found: dict[str, Line | None] = {}
    for (size, corpus), rows in drawn.items():
        known = _models([row for row in rows if row["general_loss"] and row["domain_loss"]])
        if len(known) > 2:
            found[f"{size}, {corpus}"] = mixtures.forgetting(
                _column(known, "domain_loss"), _column(known, "general_loss")
            )
    return {name: line for name, line in found.items() if line}


def _models(rows: Sequence[Row]) -> list[Row]:
    """One row of each language model, in the order of its tokens."""
    return list({row["tokens"]: row for row in rows}.values())


def _worth(drawn: Drawn) -> list[Worth]:
    """Each corpus beside the one with the least domain text, where there are several."""
    corpora = {corpus: rows[-1]["domain_weight"] for (_, corpus), rows in drawn.items()}
    if len(corpora) < 2:
        return []
    general = min(corpora, key=lambda corpus: corpora[corpus])
    against = _by_parameters(drawn, general)
    return [
        Worth(special, general, mixtures.efficiency(_by_parameters(drawn, special), against))
        for special in corpora
        if special != general
    ]


def _critical(rows: Sequence[Row], found: Sequence[Finding]) -> dict[str, float | None]:
    """By size: the most domain text at which general loss stays guarded, at the most tokens; None where no share does.

    Empty where the law of mixtures does not hold for the general loss.
    """
    law = next((law for law in found if (law.law, law.quantity) == (OF_GENERAL.name, "general_loss")), None)
    if not law or law.refused:
        return {}
    bases = {row["size"]: row for row in rows if row["start"] == "base" and row["general_loss"]}
    tokens = float(max(row["tokens"] for row in rows))
    return {
        size: mixtures.critical_share(law.fit, float(row["parameters_body"]), tokens, (1 + GUARD) * row["general_loss"])
        for size, row in bases.items()
    }


def _by_parameters(drawn: Drawn, corpus: str) -> dict[float, Curve]:
    found: dict[float, Curve] = {}
    for (_, own), rows in drawn.items():
        models = [row for row in _models(rows) if own == corpus and row["start"] == "adapted"]
        if models:
            found[float(models[0]["parameters_body"])] = _column(models, "tokens"), _column(models, "domain_loss")
    return found
