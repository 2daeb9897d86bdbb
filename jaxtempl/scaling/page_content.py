"""The content that the sections of a study's page share: the study, the page with its figures, and table cells."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from jaxtempl.reports import html
from jaxtempl.reports.html import Measured, Page, TableCell
from jaxtempl.scaling.columns import ResultRow
from jaxtempl.scaling.equivalents import Equivalents
from jaxtempl.scaling.figures import StudyFigures
from jaxtempl.scaling.laws.analysis import Analysis
from jaxtempl.specs.interval import Interval


class StudyPage(NamedTuple):
    """The subject of a page.

    Attributes:
        rows: Results of the studies.
        analysis: Analysis of the results.
        equivalents: Equivalent tokens between sizes.
        runs: Folders of the studies.
    """

    rows: Sequence[ResultRow]
    analysis: Analysis
    equivalents: Equivalents
    runs: Sequence[Path]


class FigurePage(NamedTuple):
    """A page whose figures are also saved as PNG files.

    Attributes:
        page: HTML page.
        figures: Figures of the study.
        out: Folder of the PNG files.
    """

    page: Page
    figures: StudyFigures
    out: Path

    def figure(self, name: str, figure: Figure | None, caption: str) -> None:
        """Add a figure to the page and save it as `name`.png."""
        if figure:
            html.save_png(figure, self.out / f"{name}.png")
            self.page.figure(figure, caption)


def mean_interval(cells: Sequence[ResultRow], name: str) -> TableCell:
    """Return the mean of a column over cells, with the mean of its bounds as a note."""
    value, low, high = (float(np.mean([row[name + end] for row in cells])) for end in ("", "_low", "_high"))
    return interval_cell(Interval(value, low, high), ".3f")


def interval_cell(interval: Interval, spec: str = ".3g") -> TableCell:
    """Return an interval as a table cell, with its bounds as a note."""
    return Measured(format(interval.value, spec), interval.bounds(spec))
