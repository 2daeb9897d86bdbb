"""The report of studies: analysis as JSON, figures, and a page."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from jaxtempl import files
from jaxtempl.config.scaling import ScalingReportConfig
from jaxtempl.scaling import page, results
from jaxtempl.scaling.equivalents import Equivalent, Equivalents
from jaxtempl.scaling.laws.analysis import Analysis, analyse
from jaxtempl.scaling.page_content import StudyPage

FORMAT = 2  # version of report.json; version 1 had other names for a law's fields


class WrittenReport(NamedTuple):
    """A written report.

    Attributes:
        page: HTML page.
        cells: Number of cells.
        holding_laws: Number of laws that hold.
        equivalents: Answers to `--match`.
    """

    page: Path
    cells: int
    holding_laws: int
    equivalents: list[Equivalent]


def write(config: ScalingReportConfig) -> WrittenReport:
    """Analyse studies and write `report.json`, the figures and the page.

    Raises:
        UsageError: No study is named, or `--match` cannot be answered.
        UserError: A study has no results.
    """
    rows, runs = results.read_all(config.runs), [Path(folder) for folder in config.runs]
    analysis = analyse(rows)
    equivalents = Equivalents(rows, analysis.laws)
    answers = equivalents.query(config.match) if config.match else []
    out = Path(config.out or runs[0] / "report")
    content = {"format": FORMAT, "kind": "scaling report", "runs": list(config.runs), **to_dict(analysis)}
    files.write_json(out / "report.json", content)
    page.write(StudyPage(rows, analysis, equivalents, runs), out)
    return WrittenReport(out / "index.html", len(rows), sum(not law.rejection for law in analysis.laws), answers)


def to_dict(analysis: Analysis) -> dict[str, Any]:
    """Return an analysis as JSON, without the fits."""
    laws = [{f.name: getattr(law, f.name) for f in dataclasses.fields(law) if f.name != "fit"} for law in analysis.laws]
    rest = {f.name: getattr(analysis, f.name) for f in dataclasses.fields(analysis) if f.name != "laws"}
    return files.plain({"laws": laws, **rest})
