"""Report what suggestions are worth over the system's life: report.json, and a page with the paper's Figures 4 to 6."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from jaxtempl import files
from jaxtempl.errors import UserError
from jaxtempl.experiments import aggregate, figures, lifetime, templates, trend
from jaxtempl.experiments.estimators import Estimate
from jaxtempl.experiments.lifetime import InducedAgreement, ModelTimes, WeekTimes, Worth
from jaxtempl.experiments.sums import Aggregate
from jaxtempl.experiments.templates import TemplateTrend
from jaxtempl.experiments.trend import MannKendall
from jaxtempl.reports.html import Measured, Page, TableCell

FORMAT = 1
KIND = "experiment report"

FigureT = TypeVar("FigureT")


class NotEstimated(NamedTuple):
    """The reason for which a figure cannot be estimated."""

    reason: str


class Volume(NamedTuple):
    """Numbers of a group."""

    pairs: int
    selections: int
    advocates: int


class LifetimeReport(NamedTuple):
    """The content of report.json.

    Attributes:
        holdout: Volume of the holdout.
        treatment: Volume of the treatment.
        worth: Time that suggestions save.
        agreement: Agreement of choices with the five suggestions.
        weeks: Figure 4.
        trend: Mann-Kendall test of the weekly savings.
        models: Figure 5.
        templates: Figure 6.
    """

    holdout: Volume
    treatment: Volume
    worth: Worth
    agreement: InducedAgreement | NotEstimated
    weeks: list[WeekTimes]
    trend: MannKendall | NotEstimated
    models: list[ModelTimes]
    templates: TemplateTrend | NotEstimated


def report(found: Aggregate) -> LifetimeReport:
    """Return the report of an export's sums.

    Raises:
        UserError: There is no holdout, or too few advocates for an interval of the saving.
    """
    weeks = list(lifetime.weekly_times(found))
    savings = np.array([week.times.saving.value for week in weeks if week.times])
    holdout, treatment = (_volume(found, held) for held in (True, False))
    return LifetimeReport(
        holdout,
        treatment,
        lifetime.saved(found),
        _or_reason(lambda: lifetime.agreement(found)),
        weeks,
        _or_reason(lambda: trend.mann_kendall(savings)),
        list(lifetime.model_times(found)),
        _or_reason(lambda: templates.template_trend(found)),
    )


def write(events: str, out: Path) -> LifetimeReport:
    """Report exported events as `report.json` and a page in `out`.

    Raises:
        UserError: The events cannot be read, or as for `report`.
    """
    found = report(aggregate.aggregate(events))
    files.write_json(out / "report.json", {"format": FORMAT, "kind": KIND, "events": events, **files.plain(found)})
    write_page(found, events, out / "index.html")
    return found


def summary(found: LifetimeReport) -> Iterator[str]:
    """Yield the conclusions in sentences."""
    worth = found.worth
    yield (
        f"Suggestions save {_seconds(worth.selection)} a selection and {_seconds(worth.case)} a case, "
        f"{_percent(worth.case_share)} of case time."
    )
    if isinstance(found.agreement, InducedAgreement):
        yield (
            f"The withheld five contain {_percent(found.agreement.holdout)} of the holdout's choices. Showing them "
            f"induces agreement in {_percent(found.agreement.induced)} of the labels."
        )


def write_page(found: LifetimeReport, events: str, path: Path) -> None:
    """Write the page of a report."""
    page = Page("What suggestions are worth", " ".join(summary(found)))
    _add_worth(page, found)
    page.heading("By week").figure(figures.weekly_savings(found.weeks), "Figure 4: saving by week.")
    page.figure(
        figures.group_times(found.weeks, found.models),
        "Figure 5: selection time by group. Thick: mean over each model's life, with its interval; thin: weeks.",
    )
    page.text(f"Trend of the weekly savings: {_trend(found.trend)} Weeks are taken as independent.")
    _add_models(page, found)
    _add_templates(page, found)
    _add_agreement(page, found)
    _add_weeks(page, found)
    page.facts(_facts(found, events)).write(path)


def _add_worth(page: Page, found: LifetimeReport) -> None:
    worth = found.worth
    rows: list[list[TableCell]] = [
        ["a selection", _cell(worth.selection, " s"), _p(worth.selection)],
        ["a case: saving a selection, times selections a case", _cell(worth.case, " s"), _p(worth.case)],
        ["share of case time", _cell(worth.case_share, "%"), _p(worth.case_share)],
        ["share by the paper's arithmetic, 7.38 s = 3.56 %", Measured(f"{worth.paper_share:.2%}"), ""],
        ["a case, as measured from first opening to last reply", _cell(worth.case_time, " s"), _p(worth.case_time)],
    ]
    page.heading("Time saved").table(["saving", "holdout minus treatment", "p"], rows, "Clustered by advocate.")


def _add_models(page: Page, found: LifetimeReport) -> None:
    rows: list[list[TableCell]] = [
        [model.version, model.weeks, *(_cell(one, " s") for one in model.times)] for model in found.models
    ]
    if rows:
        page.table(["model", "weeks", "holdout", "treatment", "saving"], rows, "Weeks in which both groups had it.")


def _add_templates(page: Page, found: LifetimeReport) -> None:
    page.heading("By template")
    if isinstance(found.templates, NotEstimated):
        page.text(f"Figure 6 cannot be estimated: {found.templates.reason}.")
        return
    ours = found.templates
    page.figure(figures.template_savings(ours.points), "Figure 6: saving against accuracy, a point a template.")
    page.text(
        f"{len(ours.points):,} templates of most volume: {_trend(ours.test)} The bootstrap over advocates gives "
        f"tau = {ours.tau:.3f}. Split-half reliability: accuracy {ours.accuracy_reliability:.2f}, saving "
        f"{ours.saving_reliability:.2f}. Both axes share the holdout's rows; with accuracy from one half of the "
        f"advocates and saving from the other, tau is {ours.tau_across_halves:.3f}."
    )


def _add_agreement(page: Page, found: LifetimeReport) -> None:
    page.heading("Acceptance and the feedback loop")
    if isinstance(found.agreement, NotEstimated):
        page.text(f"Agreement cannot be estimated: {found.agreement.reason}.")
        return
    ours = found.agreement
    rows: list[list[TableCell]] = [
        ["chosen template among the withheld five (holdout)", _cell(ours.holdout, "%")],
        ["chosen template among the shown five (treatment)", _cell(ours.treatment, "%")],
        ["induced agreement: the difference", _cell(ours.induced, "%")],
        ["induced, as a share of the choices that would not have agreed", _cell(ours.followed, "%")],
    ]
    page.table(["", "share of choices"], rows, "Labels of the treatment agree with the model partly because it spoke.")


def _add_weeks(page: Page, found: LifetimeReport) -> None:
    rows: list[list[TableCell]] = [
        [week.week, week.version, *([_cell(one, " s") for one in week.times] if week.times else [None] * 3)]
        for week in found.weeks
    ]
    page.table(["week", "model", "holdout", "treatment", "saving"], rows, f"All {len(rows):,} weeks", folded=True)


def _facts(found: LifetimeReport, events: str) -> dict[str, str]:
    return {
        "events": events,
        **{
            name: f"{volume.pairs:,} pairs, {volume.selections:,} selections, {volume.advocates:,} advocates"
            for name, volume in (("holdout", found.holdout), ("treatment", found.treatment))
        },
        "intervals": "95 %, clustered by advocate (CR2); times are not capped",
    }


def _volume(found: Aggregate, held: bool) -> Volume:
    rows = found.pairs
    ours = lifetime.is_held(found, rows.arm) == held
    pairs, advocates = (len(np.unique(column[ours])) for column in (rows.pair, rows.advocate))
    return Volume(pairs, int(rows.selections[ours].sum()), advocates)


def _or_reason(estimate: Callable[[], FigureT]) -> FigureT | NotEstimated:
    """Return an estimate, or the reason for which there is none."""
    try:
        return estimate()
    except UserError as error:
        return NotEstimated(str(error))


def _trend(found: MannKendall | NotEstimated) -> str:
    if isinstance(found, NotEstimated):
        return f"none ({found.reason})."
    return f"Mann-Kendall S = {found.s:,.0f}, Z = {found.z:.2f}, p = {found.p:.2g}, tau = {found.tau:.3f}."


def _cell(found: Estimate, unit: str) -> Measured:
    """Return a table cell in seconds or in percent."""
    if unit == "%":
        return Measured(f"{found.value:.2%}", f"[{found.low:.2%}, {found.high:.2%}]")
    return Measured(f"{found.value:.2f}{unit}", f"[{found.low:.2f}, {found.high:.2f}]")


def _p(found: Estimate) -> Measured:
    return Measured(f"{found.p:.2g}")


def _seconds(found: Estimate) -> str:
    return f"{found.value:.2f} s [{found.low:.2f}, {found.high:.2f}]"


def _percent(found: Estimate) -> str:
    return f"{found.value:.2%} [{found.low:.2%}, {found.high:.2%}]"
