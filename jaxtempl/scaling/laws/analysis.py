"""The analysis of a study: every law fitted, assessed and summarised, and the tests between sizes and corpora."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jaxtempl.scaling.columns import TOP_K, ResultRow
from jaxtempl.scaling.laws import (
    catalog,
    goodness_of_fit,
    mann_kendall,
    mixtures,
    regression,
    selection,
    summaries,
)
from jaxtempl.scaling.laws.fitting import Fit
from jaxtempl.scaling.laws.hypotheses import GENERAL_MIXTURE, Hypothesis, hypotheses
from jaxtempl.scaling.laws.mann_kendall import TrendDirection
from jaxtempl.scaling.laws.mixtures import LossCurve, TokenEfficiency
from jaxtempl.scaling.laws.regression import CommonCurveTest, Regression
from jaxtempl.specs.interval import Interval

GENERAL_LOSS_TOLERANCE = 0.1  # relative increase of the general loss over the base's
FIGURE_3C_QUANTITIES = ("domain_loss", "loss")


@dataclasses.dataclass(frozen=True)
class LawResult:
    """The result of fitting one law to some results.

    Attributes:
        law: Name of the law.
        formula: Formula of the law.
        source: Publication of the law.
        quantity: Quantity that the law predicts.
        subset: Name of the results that the law is fitted to.
        points: Number of points.
        parameters: Parameters with intervals.
        r2: Share of the variance of the log quantity that the law explains.
        heldout_error: Mean relative error on held-out points, the largest over the variables.
        rejection: Reason why the law does not hold; empty if it holds.
        summary: One-sentence summary.
        fit: Fit behind the result.
        misfit: Mean relative error on the fitted points.
        remarks: What a reader must know besides.
        extrapolates: Whether the law predicts outside the measured range.
    """

    law: str
    formula: str
    source: str
    quantity: str
    subset: str
    points: int
    parameters: dict[str, Interval]
    r2: float
    heldout_error: float
    rejection: str
    summary: str
    fit: Fit
    misfit: float = float("nan")
    remarks: tuple[str, ...] = ()
    extrapolates: bool = False


class LossToLoss(NamedTuple):
    """Regressions of classification loss on language-model loss (Figure 3c).

    Attributes:
        pooled: Line of all sizes.
        by_size: Line of each size.
        test: F test of the pooled line against the lines by size.
    """

    pooled: Regression | None
    by_size: dict[str, Regression]
    test: CommonCurveTest | None


class CurveTrends(NamedTuple):
    """Trends of one curve against tokens.

    Attributes:
        size: Size of the model.
        corpus: Corpus of the adaptation.
        directions: Trend direction by quantity.
        misaligned: Whether the loss improves and top-1 does not.
    """

    size: str
    corpus: str
    directions: dict[str, TrendDirection]
    misaligned: bool


class CorpusEfficiency(NamedTuple):
    """The ratio of the general corpus's tokens to the special corpus's at equal domain loss."""

    special: str
    general: str
    ratio: TokenEfficiency


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The analysis of a study.

    Attributes:
        laws: Result of each law.
        loss_to_loss: Regressions of Figure 3c.
        common_curves: F test of one curve in compute for all sizes, by quantity.
        trends: Trends of each curve.
        forgetting: Regression of general loss gained on domain loss won, by size and corpus.
        efficiency: Token efficiency of each corpus over the one with the least domain text.
        critical_shares: Largest share of domain text that guards the general loss, by size; None if no share does.
    """

    laws: list[LawResult]
    loss_to_loss: LossToLoss
    common_curves: dict[str, CommonCurveTest]
    trends: list[CurveTrends]
    forgetting: dict[str, Regression]
    efficiency: list[CorpusEfficiency]
    critical_shares: dict[str, float | None]


def analyse(rows: Sequence[ResultRow]) -> Analysis:
    """Analyse a study's results and show the progress."""
    rows = selection.comparable(rows)
    bar = tqdm(list(hypotheses(rows)), "laws", file=sys.stderr, disable=None)
    main = _main_curve_rows(rows)
    tests = _test_common_curves(main)
    laws = [_reject_pooled(result, tests) for hypothesis in bar if (result := evaluate(hypothesis))]
    curves = selection.curves(rows, selection.main_labels(rows))
    return Analysis(
        laws=laws,
        loss_to_loss=_loss_to_loss(main),
        common_curves=tests,
        trends=curve_trends(rows),
        forgetting=_forgetting(curves),
        efficiency=_efficiency(curves),
        critical_shares=critical_shares(rows, laws),
    )


def evaluate(hypothesis: Hypothesis) -> LawResult | None:
    """Fit and assess a hypothesis; return None if there are too few points."""
    law, quantity = hypothesis.law, hypothesis.quantity
    assessment = goodness_of_fit.assess(law, selection.observations(law, hypothesis.rows, quantity))
    if not assessment:
        return None
    fit = assessment.fit
    return LawResult(
        law=law.name,
        formula=law.formula,
        source=law.source,
        quantity=quantity,
        subset=hypothesis.subset,
        points=len(fit.data.y),
        parameters=fit.parameters,
        r2=fit.r2,
        heldout_error=assessment.heldout_error,
        rejection=assessment.rejection,
        summary=summaries.summarise(assessment, quantity),
        fit=fit,
        misfit=assessment.misfit,
        remarks=assessment.remarks,
        extrapolates=assessment.extrapolates,
    )


def _reject_pooled(result: LawResult, tests: Mapping[str, CommonCurveTest]) -> LawResult:
    """Reject a law in compute alone if a curve for each size has a far smaller misfit."""
    test = tests.get(result.quantity)
    if result.law != catalog.IN_COMPUTE.name or result.rejection or not test:
        return result
    ratio = (test.pooled / max(test.separate, 1e-300)) ** 0.5
    if ratio <= goodness_of_fit.NOISE_FACTOR:
        return result
    reason = f"each size has its own curve: one curve misfits {ratio:.1f} times as much (p = {test.p:.2g})"
    return dataclasses.replace(result, rejection=reason, summary=summaries.rejected(reason))


def _main_curve_rows(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Return the checkpoints of the main corpus at the main number of labels, of all sizes."""
    labels, corpus = selection.main_labels(rows), selection.main_corpus(rows)
    return [row for row in rows if row["labels"] == labels and row["corpus"] == corpus]


def _loss_to_loss(rows: Sequence[ResultRow]) -> LossToLoss:
    kept = [row for row in rows if row["domain_loss"]]
    names = selection.sizes(kept)
    x, y = (_column(kept, name) for name in FIGURE_3C_QUANTITIES)
    size = np.array([names.index(row["size"]) for row in kept], int)
    lines = {name: regression.fit_line(x[size == i], y[size == i]) for i, name in enumerate(names)}
    by_size = {name: line for name, line in lines.items() if line}
    return LossToLoss(regression.fit_line(x, y), by_size, regression.compare_lines(x, y, size))


def _test_common_curves(rows: Sequence[ResultRow]) -> dict[str, CommonCurveTest]:
    """Test whether one curve in compute serves all sizes, by quantity."""
    tests: dict[str, CommonCurveTest | None] = {}
    for quantity in FIGURE_3C_QUANTITIES:
        points = selection.observations(catalog.IN_COMPUTE, rows, quantity)
        parameters = selection.observations(catalog.IN_PARAMETERS, rows, quantity).x[:, 0]
        size = np.unique(parameters, return_inverse=True)[1]
        tests[quantity] = regression.compare_laws(catalog.IN_COMPUTE, points, size)
    return {quantity: test for quantity, test in tests.items() if test}


Curves = Mapping[tuple[str, str], list[ResultRow]]  # by size and corpus


def _column(rows: Sequence[ResultRow], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], float)


def curve_trends(rows: Sequence[ResultRow]) -> list[CurveTrends]:
    """Return the trends of each curve of a study."""
    trends: list[CurveTrends] = []
    for (size, corpus), curve in selection.curves(rows, selection.main_labels(rows)).items():
        tokens, loss, top1 = (_column(curve, name) for name in ("tokens", "loss", "top1"))
        directions: dict[str, TrendDirection] = {
            name: mann_kendall.trend(tokens, _column(curve, name)).direction for name in ("loss", *TOP_K)
        }
        trends.append(CurveTrends(size, corpus, directions, mann_kendall.is_misaligned(tokens, loss, top1)))
    return trends


def _forgetting(curves: Curves) -> dict[str, Regression]:
    """Regress general loss gained on domain loss won, by size and corpus."""
    lines: dict[str, Regression | None] = {}
    for (size, corpus), rows in curves.items():
        models = _one_row_a_model([row for row in rows if row["general_loss"] and row["domain_loss"]])
        if len(models) > 2:
            losses = (_column(models, name) for name in ("domain_loss", "general_loss"))
            lines[f"{size}, {corpus}"] = mixtures.forgetting(*losses)
    return {name: line for name, line in lines.items() if line}


def _one_row_a_model(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Return one row of each language model, in the order of tokens."""
    return list({row["tokens"]: row for row in rows}.values())


def _efficiency(curves: Curves) -> list[CorpusEfficiency]:
    """Compare each corpus with the one that has the least domain text; empty if there is only one."""
    domain_weight = {corpus: rows[-1]["domain_weight"] for (_, corpus), rows in curves.items()}
    if len(domain_weight) < 2:
        return []
    general = min(domain_weight, key=lambda corpus: domain_weight[corpus])
    reference = _loss_curves(curves, general)
    return [
        CorpusEfficiency(special, general, mixtures.efficiency(_loss_curves(curves, special), reference))
        for special in domain_weight
        if special != general
    ]


def _loss_curves(curves: Curves, corpus: str) -> dict[float, LossCurve]:
    """Return the domain loss against tokens of a corpus's adapted models, by parameters."""
    by_parameters: dict[float, LossCurve] = {}
    for (_, curve_corpus), rows in curves.items():
        models = [row for row in _one_row_a_model(rows) if curve_corpus == corpus and row["start"] == "adapted"]
        if models:
            by_parameters[float(models[0]["parameters_body"])] = (
                _column(models, "tokens"),
                _column(models, "domain_loss"),
            )
    return by_parameters


def critical_shares(rows: Sequence[ResultRow], laws: Sequence[LawResult]) -> dict[str, float | None]:
    """Return the largest share of domain text that guards the general loss, at the most tokens, by size.

    The value is None where no share does. The result is empty if the mixture law does not hold for the general loss.
    """
    law = next((law for law in laws if (law.law, law.quantity) == (GENERAL_MIXTURE.name, "general_loss")), None)
    if not law or law.rejection:
        return {}
    bases = {row["size"]: row for row in rows if row["start"] == "base" and row["general_loss"]}
    tokens = float(max(row["tokens"] for row in rows))
    return {
        size: mixtures.critical_share(
            law.fit, float(row["parameters_body"]), tokens, (1 + GENERAL_LOSS_TOLERANCE) * row["general_loss"]
        )
        for size, row in bases.items()
    }
