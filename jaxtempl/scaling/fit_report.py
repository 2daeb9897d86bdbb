"""The report of a law that was fitted to a table: a page, figures and JSON."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from jaxtempl import files
from jaxtempl.config.scaling import ScalingFitConfig
from jaxtempl.reports import html
from jaxtempl.reports.html import Measured, Page
from jaxtempl.scaling import figures
from jaxtempl.scaling.laws import table
from jaxtempl.scaling.laws.checklist import checklist
from jaxtempl.scaling.laws.goodness_of_fit import LawAssessment
from jaxtempl.scaling.laws.summaries import verdict
from jaxtempl.scaling.laws.table import TableFit
from jaxtempl.specs.interval import Interval

FORMAT = 1  # version of fit.json


class WrittenFit(NamedTuple):
    """A written report.

    Attributes:
        page: HTML page.
        parameters: Parameters with intervals.
        summary: Verdict in a sentence or two.
    """

    page: Path
    parameters: dict[str, Interval]
    summary: str


def write(config: ScalingFitConfig) -> WrittenFit:
    """Fit a law to a table and write `index.html`, `fit.json` and the figures.

    Raises:
        UserError: See `laws.fit`.
    """
    fitted = table.fit(
        config.table, config.law, config.x, config.y, config.group, config.holdout, config.delta or None, config.seed
    )
    summary = verdict(fitted.assessment)
    facts = checklist(fitted.assessment, config.counted, config.schedule)
    files.write_json(config.out / "fit.json", files.plain(to_dict(fitted, summary, facts)))
    _write_page(config, fitted, summary, facts)
    return WrittenFit(config.out / "index.html", fitted.assessment.fit.parameters, summary)


def to_dict(fitted: TableFit, summary: str, facts: dict[str, str]) -> dict[str, Any]:
    """Return a fit as JSON."""
    assessment = fitted.assessment
    return {
        "format": FORMAT,
        "kind": "scaling fit",
        "law": assessment.fit.law.name,
        "columns": {"x": fitted.columns, "y": fitted.quantity, "group": fitted.group, "holdout": fitted.holdout},
        "parameters": assessment.fit.parameters,
        "accepted": not assessment.rejection,
        "extrapolates": assessment.extrapolates,
        "rejection": assessment.rejection,
        "remarks": assessment.remarks,
        "unidentified": assessment.unidentified,
        "r2": assessment.fit.r2,
        "misfit": assessment.misfit,
        "noise": assessment.noise,
        "heldout": {name: one._asdict() for name, one in assessment.heldout.items()},
        "summary": summary,
        "checklist": facts,
    }


def _write_page(config: ScalingFitConfig, fitted: TableFit, summary: str, facts: dict[str, str]) -> None:
    assessment = fitted.assessment
    page = Page(f"{assessment.fit.law.name}: {config.table.name}", summary)
    drawn: dict[str, tuple[Figure, str]] = {
        "fit": (figures.predicted(assessment.fit, fitted.quantity), "Measured against predicted."),
        **{
            f"residuals-{name}": (figures.residuals(assessment.fit, i, name), f"Residuals by {name}.")
            for i, name in enumerate(fitted.columns)
        },
    }
    for name, (figure, caption) in drawn.items():
        html.save_png(figure, config.out / f"{name}.png")
        page.figure(figure, caption)
    page.table(
        ["parameter", "value"],
        [[name, Measured(f"{v.value:.4g}", v.bounds(".4g"))] for name, v in assessment.fit.parameters.items()],
        "Brackets are 95 % intervals.",
    )
    page.table(["", "relative error"], _errors(assessment), "Mean errors; the rule of acceptance is in docs/laws.md.")
    page.facts(facts).write(config.out / "index.html")


def _errors(assessment: LawAssessment) -> list[list[Any]]:
    rows: list[list[Any]] = [["misfit of the fitted points", Measured(f"{assessment.misfit:.2%}")]]
    if not np.isnan(assessment.noise):
        rows.append(["noise of repeated points", Measured(f"{assessment.noise:.2%}")])
    for name, one in assessment.heldout.items():
        if not np.isnan(one.error):
            rows.append([f"held-out values of {name}", Measured(f"{one.error:.2%}")])
            rows.append([f"the nearest measured value of {name} instead", Measured(f"{one.nearest:.2%}")])
    return rows
