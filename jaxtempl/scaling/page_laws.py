"""The laws on a study's page: laws that hold and that do not, trends, forgetting, efficiency and equivalent tokens."""

import numpy as np

from jaxtempl.reports.html import Measured, TableCell
from jaxtempl.scaling import figures
from jaxtempl.scaling.columns import TOP_K
from jaxtempl.scaling.laws import analysis
from jaxtempl.scaling.laws.analysis import LawResult
from jaxtempl.scaling.laws.hypotheses import POOLED_SUBSETS
from jaxtempl.scaling.laws.summaries import quantity_name
from jaxtempl.scaling.page_content import FigurePage, StudyPage, interval_cell


def add(page: FigurePage, study: StudyPage) -> None:
    """Add the sections to the page."""
    if study.analysis.laws:
        _laws(page, study)
    if study.analysis.trends:
        _trends(page, study)
        _forgetting(page, study)
    _efficiency(page, study)
    _equivalents(page, study)


def _laws(page: FigurePage, study: StudyPage) -> None:
    laws = study.analysis.laws
    holding = [law for law in laws if not law.rejection]
    page.page.heading("Laws").text(
        f"{len(holding)} of {len(laws)} hold. They are not independent: quantities and subsets share cells. A law is "
        "rejected by its misfit, its held-out error, or too little trend (docs/laws.md); a rejected law is not drawn."
    )
    page.page.table(
        ["law", "of", "parameters", "R²", "misfit", "held-out error", "summary"],
        [_law(law) for law in holding],
        "Misfit and held-out error: mean relative errors on the fitted points, and on the largest values of a variable "
        "when fitted to the others. Brackets are 95 % intervals over runs.",
    )
    for i, law in enumerate(law for law in holding if law.subset in POOLED_SUBSETS):
        page.figure(
            f"law-{i}",
            figures.predicted(law.fit, quantity_name(law.quantity)),
            f"{law.law}: {law.formula}, {law.subset}.",
        )
        page.figure(f"law-{i}-residuals", figures.residuals(law.fit, 0, law.fit.law.variables[0]), "Its residuals.")
    _rejected_laws(page, laws)


def _law(law: LawResult) -> list[TableCell]:
    parameters = ", ".join(f"{name} {interval:.3g}" for name, interval in law.parameters.items())
    error = None if np.isnan(law.heldout_error) else Measured(f"{law.heldout_error:.1%}")
    subject = f"{quantity_name(law.quantity)}, {law.subset}, {law.points} points"
    return [law.law, subject, parameters, law.r2, Measured(f"{law.misfit:.1%}"), error, law.summary]


def _rejected_laws(page: FigurePage, laws: list[LawResult]) -> None:
    """Add the rejected laws with their reasons, and the formulas and sources of all laws."""
    rows: list[list[TableCell]] = [
        [law.law, f"{quantity_name(law.quantity)}, {law.subset}", law.rejection] for law in laws if law.rejection
    ]
    page.page.table(["law", "of", "reason"], rows, f"The {len(rows)} rejected laws", folded=True)
    sources = {law.law: (law.formula, law.source) for law in laws}
    page.page.table(
        ["law", "formula", "source"],
        [[name, *source] for name, source in sources.items()],
        "Formulas and sources",
        folded=True,
    )


def _trends(page: FigurePage, study: StudyPage) -> None:
    names = ("loss", *TOP_K)
    rows: list[list[TableCell]] = [
        [curve.size, curve.corpus, *(curve.directions[name] for name in names), "yes" if curve.misaligned else "no"]
        for curve in study.analysis.trends
    ]
    page.page.heading("Does more adaptation help?").table(
        ["size", "corpus", *map(quantity_name, names), "loss improves, top-1 does not"],
        rows,
        "Mann-Kendall test of each curve from the base on, at 5 %. A yes in the last column indicates a corpus that is "
        "not aligned with the task (Isik et al., 2024): more of it is not worth its cost.",
    )


def _forgetting(page: FigurePage, study: StudyPage) -> None:
    if study.analysis.forgetting:
        lines: list[list[TableCell]] = [
            [name, interval_cell(line.slope), line.r2] for name, line in study.analysis.forgetting.items()
        ]
        page.page.heading("Forgetting").table(
            ["size and corpus", "general loss gained per nat of domain loss won", "R²"], lines
        )
        page.figure("forgetting", page.figures.forgetting(), "General loss against domain loss during the adaptation.")
    if study.analysis.critical_shares:
        shares: list[list[TableCell]] = [[size, share] for size, share in study.analysis.critical_shares.items()]
        page.page.table(
            ["size", "critical share of domain text"],
            shares,
            f"Up to this share the general loss stays within {analysis.GENERAL_LOSS_TOLERANCE:.0%} of the base's, by "
            "the mixture law at the most tokens measured (Que et al., 2024).",
        )


def _efficiency(page: FigurePage, study: StudyPage) -> None:
    if not any(corpus.ratio.by_size for corpus in study.analysis.efficiency):
        return
    page.page.heading("Efficiency of domain text").text(
        "How many times the tokens of the corpus with the least domain text a size needs to reach another corpus's "
        "domain loss (after arXiv 2501.02068)."
    )
    page.figure(
        "efficiency",
        page.figures.efficiency(),
        "Above 1, the general corpus needs more tokens. A triangle is a lower bound.",
    )
    for corpus in study.analysis.efficiency:
        if corpus.ratio.trend:
            slope = f"{corpus.ratio.trend.slope:.3g}"
            page.page.text(f"{corpus.special} over {corpus.general}: ten times the size multiplies it by 10 ^ {slope}.")


def _equivalents(page: FigurePage, study: StudyPage) -> None:
    rows: list[list[TableCell]] = [
        [
            size,
            Measured(f"{tokens[at]:,.0f}"),
            other.size,
            Measured(f"{other.tokens:,.0f}") if other.tokens else None,
            other.method,
        ]
        for size, (tokens, losses) in study.equivalents.curves.items()
        for at in (0, len(tokens) - 1)
        for other in study.equivalents.matching(size, float(losses[at]))
    ]
    if rows:
        page.page.heading("Equivalent tokens").table(
            ["size", "at tokens", "is matched by", "at tokens", ""], rows, "Pairs with the same classification loss."
        )
