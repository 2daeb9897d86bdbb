"""Write the page of an A/B test: the verdict, Table 5, its picture, the daily looks and the checks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxtempl.experiments.analysis import ABAnalysis, TimeEstimates
from jaxtempl.experiments.estimators import Estimate
from jaxtempl.experiments.table5 import PAPER
from jaxtempl.reports import html
from jaxtempl.reports.html import Measured, Page, TableCell
from jaxtempl.specs.interval import Interval

NAIVE = "naive Welch (selections taken as independent)"


def write_page(found: ABAnalysis, events: str, path: Path) -> None:
    """Write the page of an analysis of the named events."""
    page = Page(f"A/B test of {found.arms[0]} and {found.arms[1]}", found.verdict)
    _add_table5(page, found)
    page.figure(
        _estimates_figure(found),
        "Differences of means with their 95 % intervals. Below zero, the second arm is faster.",
    )
    page.figure(_looks_figure(found), "Difference of all data up to each day. The band holds at every look.")
    page.text(_safety(found))
    _add_estimates(page, found)
    _add_use(page, found)
    _add_checks(page, found)
    page.facts(_facts(found, events)).write(path)


def _add_table5(page: Page, found: ABAnalysis) -> None:
    raw = found.raw
    p = raw.by_advocate.p if found.headline == "by_advocate" else raw.rerandomization.p
    ours: list[TableCell] = [
        "/".join(found.arms),
        *(Measured(f"{mean:.2f}") for mean in raw.means),
        _seconds(raw.by_advocate),
        Measured(f"{p:.3g}", "clustered by advocate" if found.headline == "by_advocate" else "re-randomised pairs"),
    ]
    papers = [_paper_row(row) for row in PAPER]
    page.heading("Table 5").table(
        ["A/B test", "A, s", "B, s", "B - A, s", "p-value"],
        [ours, *papers],
        "Mean selection times. The paper does not state the unit of its tests; its intervals are what its p-values "
        "imply for a normal test.",
        strong=(0,),
    )


def _paper_row(row: Any) -> list[TableCell]:
    margin = 1.96 * row.implied_se
    interval = Interval(row.difference, row.difference - margin, row.difference + margin)
    return [
        f"paper, {'/'.join(row.arms)}",
        *(Measured(f"{mean:.2f}") for mean in row.means),
        Measured(f"{interval.value:+.2f}", f"{interval.bounds('+.2f')} implied"),
        Measured(f"{row.p:.3g}", "unit not stated"),
    ]


def _seconds(estimate: Estimate) -> Measured:
    return Measured(f"{estimate.value:+.3f}", f"[{estimate.low:+.3f}, {estimate.high:+.3f}]")


def _rows(found: ABAnalysis) -> dict[str, Estimate]:
    """Return the differences of means in seconds, by name."""
    rows = dict[str, Estimate]()
    for kind, times in _kinds(found).items():
        rows[f"{kind}, by advocate"] = times.by_advocate
        rows[f"{kind}, by pair"] = times.by_pair
        if times.cuped:
            rows[f"{kind}, CUPED by advocate"] = times.cuped.estimate
    return {**rows, "all replies, by advocate": found.reply_time, NAIVE: found.raw.naive_welch}


def _kinds(found: ABAnalysis) -> dict[str, TimeEstimates]:
    capped = {f"at most {found.cap_seconds:g} s": found.capped} if found.capped else {}
    return {"selections": found.raw, **capped}


def _estimates_figure(found: ABAnalysis) -> Figure:
    rows = _rows(found)
    with html.drawing(height=0.6 + 0.36 * len(rows), width=6.4) as (figure, axes):
        for i, (name, each) in enumerate(rows.items()):
            colour = html.ORANGE if name == NAIVE else html.BLUE
            axes.errorbar(
                [each.value], [i], xerr=[[each.value - each.low], [each.high - each.value]], fmt="o", color=colour
            )
        axes.axvline(0, color="#888888", linewidth=1)
        axes.set_yticks(range(len(rows)), [name.partition(" (")[0] for name in rows])
        axes.invert_yaxis()
        axes.set(xlabel=f"{found.arms[1]} minus {found.arms[0]}, seconds")
    return figure


def _looks_figure(found: ABAnalysis) -> Figure:
    days = range(1, len(found.looks) + 1)
    with html.drawing(height=3.2, width=5.2) as (figure, axes):
        axes.fill_between(
            days,
            [look.low for look in found.looks],
            [look.high for look in found.looks],
            color=html.SKY,
            alpha=0.35,
            label="confidence sequence",
        )
        axes.plot(days, [look.value for look in found.looks], color=html.BLUE, marker=".", label="difference")
        last = found.looks[-1]
        axes.errorbar(
            [len(found.looks)],
            [last.value],
            yerr=[[last.value - last.fixed_low], [last.fixed_high - last.value]],
            color=html.ORANGE,
            capsize=3,
            label="interval of the last look",
        )
        axes.axhline(0, color="#888888", linewidth=1)
        axes.set(xlabel="look, one a day", ylabel="seconds")
        axes.legend(fontsize=8)
    return figure


def _safety(found: ABAnalysis) -> str:
    sequence = (
        f"excludes zero from {found.crossed} on: the test could have been stopped for safety then"
        if found.crossed
        else "contains zero at every look: nothing called for stopping the test early"
    )
    return f"The confidence sequence {sequence}. The decision is the single look at the end."


def _add_estimates(page: Page, found: ABAnalysis) -> None:
    rows: list[list[TableCell]] = [
        [name, _seconds(each), Measured(f"{each.p:.3g}"), Measured(f"{each.df:.0f}")]
        for name, each in _rows(found).items()
    ]
    for kind, times in _kinds(found).items():
        test, ratio = times.rerandomization, times.log_ratio
        rows.append([f"{kind}, re-randomised pairs ({test.draws:,} draws)", None, Measured(f"{test.p:.3g}"), None])
        relative = Measured(f"{ratio.value:+.4f}", f"[{ratio.low:+.4f}, {ratio.high:+.4f}]")
        rows.append(
            [f"{kind}, log ratio by advocate", relative, Measured(f"{ratio.p:.3g}"), Measured(f"{ratio.df:.0f}")]
        )
    page.heading("Estimates").table(
        ["estimate", "B - A", "p-value", "degrees of freedom"], rows, "Seconds; the log ratio has no unit."
    )
    page.text(
        f"The advocates count as {found.effective_advocates:.0f} equal ones. The naive test is for comparison with "
        "published figures: an advocate's times are correlated, so that it rejects two equal arms too often."
    )
    for name, times in _kinds(found).items():
        if times.cuped:
            kept = f"{times.cuped.variance_kept:.0%} of the variance is kept"
            page.text(f"CUPED of {name}: theta {times.cuped.theta:.2f}; {kept}.")
    for note in found.notes:
        page.text(f"Left out: {note}.")


def _add_use(page: Page, found: ABAnalysis) -> None:
    rows: list[list[TableCell]] = [
        [
            c.arm,
            c.pairs,
            c.advocates,
            c.suggestions,
            c.replies,
            c.selections,
            Measured(f"{c.template_use:.1%}"),
            c.over_cap,
        ]
        for c in found.counts
    ]
    page.heading("Arms").table(
        ["arm", "pairs", "advocates", "suggestions", "replies", "selections", "template use", "over the cap"],
        rows,
        "Template use: share of the replies that are a template. Replies and selections have a time.",
    )
    if found.holdout_top:
        rows = [[Measured(value.__format__(".3f")) for value in found.holdout_top.values()]]
        page.table(
            [f"top-{name.removeprefix('top')}" for name in found.holdout_top],
            rows,
            "Accuracy in the holdout of the same days: share of the choices that the withheld suggestions contain, "
            "clustered by advocate.",
        )


def _add_checks(page: Page, found: ABAnalysis) -> None:
    rows: list[list[TableCell]] = [
        ["passed" if check.passed else "failed", check.name, check.finding] for check in found.checks
    ]
    page.heading("Checks").table(
        ["", "check", "finding"],
        rows,
        "A failed check withholds the verdict.",
        strong=[i for i, check in enumerate(found.checks) if not check.passed],
    )


def _facts(found: ABAnalysis, events: str) -> Mapping[str, str]:
    return {
        "events": events,
        "experiment": f"{found.experiment}, {found.days[0]} to {found.days[1]}",
        "cap": "none declared" if found.cap_seconds is None else f"{found.cap_seconds:g} s, declared in the file",
        "planned standard error": f"{found.planned_se:.3f} s",
    }
