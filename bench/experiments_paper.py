"""The paper's online results on the simulated world `paper`: Table 5, Figures 4 to 6, and 3.56 % of case time.

`.venv/bin/python -m bench.experiments_paper` writes docs/benchmarks/experiments_paper.{json,md} and its pictures. The
world is simulated once, into runs/bench-experiments/.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import common
from jaxtempl import files
from jaxtempl.experiments import aggregate, estimators, figures, report, simulate, world
from jaxtempl.experiments.estimators import Estimate, Sample, sums_by_cluster
from jaxtempl.experiments.lifetime import PAPER_SAVING, PAPER_SHARE, InducedAgreement
from jaxtempl.experiments.report import LifetimeReport
from jaxtempl.experiments.sums import Aggregate
from jaxtempl.experiments.table5 import PAPER, PaperTest
from jaxtempl.experiments.templates import TemplateTrend
from jaxtempl.experiments.trend import MannKendall
from jaxtempl.experiments.world import World
from jaxtempl.reports import html

EVENTS = common.ROOT / "runs" / "bench-experiments" / "paper.parquet"
NAME = "experiments_paper"


class Claim(NamedTuple):
    """A number of the paper, or of the world that stands for it, and the estimate from the world's events.

    Attributes:
        name: The number's name.
        expected: The number.
        found: The estimate, with its interval by advocate.
        covered: Whether the interval contains the number.
    """

    name: str
    expected: float
    found: Estimate
    covered: bool


class SimulatedRow(NamedTuple):
    """A row of Table 5 by three methods; differences are the second arm minus the first."""

    arms: tuple[str, str]
    means: list[Estimate]
    by_advocate: Estimate
    by_pair: Estimate
    naive: Estimate
    paper: PaperTest


def main() -> None:
    """Simulate, report, and write the page."""
    machine, settings = common.machine(("numpy", "scipy", "duckdb")), world.read("paper")
    if not EVENTS.is_file():
        EVENTS.parent.mkdir(parents=True, exist_ok=True)
        simulate.simulate(settings, EVENTS, EVENTS.with_suffix(".truth.parquet"))
    found = aggregate.aggregate(str(EVENTS))
    tests, reported = table_5(found), report.report(found)
    checked = claims(settings, tests, reported)
    results = {"machine": machine, "tests": tests, "claims": checked, "report": reported}
    draw(reported, common.RESULTS)
    common.write(NAME, files.plain(results), page(machine, settings, tests, checked, reported))


def table_5(found: Aggregate) -> list[SimulatedRow]:
    """Return the three tests."""
    return [_row_of(found, paper) for paper in PAPER]


def _row_of(found: Aggregate, paper: PaperTest) -> SimulatedRow:
    first, second = (arm.removeprefix("model-") for arm in paper.arms)
    arms = (first, second)
    rows, numbers = found.pairs, [found.arms.index(arm) for arm in arms]
    kept = np.isin(rows.arm, numbers) & (rows.experiment == found.experiments.index("-".join(arms)))
    arm = (rows.arm == numbers[1]).astype(int)[kept]
    advocate, pair = (
        sums_by_cluster(rows.seconds[kept], column[kept], arm, rows.selections[kept])
        for column in (rows.advocate, np.unique(rows.pair, return_inverse=True)[1])
    )
    means = [estimators.mean(estimators.ClusterSums(advocate.totals[:, [i]], advocate.weights[:, [i]])) for i in (0, 1)]
    samples = [_sample(rows.selections[kept], rows.seconds[kept], rows.squares[kept], arm == i) for i in (0, 1)]
    return SimulatedRow(
        arms,
        means,
        estimators.difference(advocate),
        estimators.difference(pair),
        estimators.naive_welch(*samples),
        paper,
    )


def _sample(counts: np.ndarray, totals: np.ndarray, squares: np.ndarray, arm: np.ndarray) -> Sample:
    n, total = int(counts[arm].sum()), float(totals[arm].sum())
    return Sample(n, total / n, (float(squares[arm].sum()) - total**2 / n) / (n - 1))


def claims(settings: World, tests: list[SimulatedRow], reported: LifetimeReport) -> list[Claim]:
    """Return the numbers of the paper next to the estimates."""
    found = [
        _claim(f"Table 5, {test.arms[0]} to {test.arms[1]}, s", test.paper.difference, test.by_advocate)
        for test in tests
    ]
    found.append(_claim("saving a selection, s", PAPER_SAVING, reported.worth.selection))
    found.append(_claim("share of case time", PAPER_SHARE, reported.worth.case_share))
    for model in reported.models:
        expected = life(settings, model.version)
        found.append(_claim(f"Figure 5, holdout of {model.version}, s", settings.seconds, model.times.holdout))
        found.append(_claim(f"Figure 5, treatment of {model.version}, s", expected, model.times.treatment))
    return found


def _claim(name: str, expected: float, found: Estimate) -> Claim:
    return Claim(name, expected, found, bool(found.low <= expected <= found.high))


def served(settings: World, week: int) -> dict[str, float]:
    """Return the share of the treatment that each version serves in a week."""
    running = [test for test in settings.tests if test.week <= week < test.week + test.weeks]
    return dict.fromkeys(running[0].arms, 0.5) if running else {settings.released(week): 1.0}


def mean_time(settings: World, version: str, week: int) -> float:
    """Return the world's mean time with a version in a week, in seconds."""
    saving = next(model.saving for model in settings.models if model.version == version)
    return settings.seconds * (1 - saving) * (1 - settings.learning) ** week


def life(settings: World, version: str) -> float:
    """Return the world's mean time with a version over the weeks of its release, in seconds."""
    weeks = [week for week in range(settings.weeks) if settings.released(week) == version]
    weights = [served(settings, week)[version] for week in weeks]
    return float(np.average([mean_time(settings, version, week) for week in weeks], weights=weights))


def covered_weeks(settings: World, reported: LifetimeReport) -> tuple[int, int]:
    """Return how many weekly intervals of Figure 4 contain the world's saving, and how many there are."""
    inside = list[bool]()
    for number, week in enumerate(reported.weeks):
        shares = served(settings, number)
        saving = settings.seconds - sum(share * mean_time(settings, v, number) for v, share in shares.items())
        if week.times:
            inside.append(week.times.saving.low <= saving <= week.times.saving.high)
    return sum(inside), len(inside)


def draw(reported: LifetimeReport, folder: Path) -> None:
    """Write Figures 4 to 6."""
    html.save_png(figures.weekly_savings(reported.weeks), folder / f"{NAME}-4.png")
    html.save_png(figures.group_times(reported.weeks, reported.models), folder / f"{NAME}-5.png")
    if isinstance(reported.templates, TemplateTrend):
        html.save_png(figures.template_savings(reported.templates.points), folder / f"{NAME}-6.png")


def page(
    machine: Mapping[str, Any],
    settings: World,
    tests: list[SimulatedRow],
    checked: list[Claim],
    reported: LifetimeReport,
) -> str:
    """Return the page in Markdown."""
    lines = [
        "# The paper's online results on a simulated world",
        "",
        f"The world `paper` has the paper's four models for {settings.weeks} weeks, {settings.advocates} advocates,",
        f"{settings.pairs_a_week:,} pairs a week and a holdout of {settings.holdout:.0%}. Its means are the paper's;",
        "its volumes, weeks and variances are assumed, so its p-values are not those of the paper.",
        "`python -m bench.experiments_paper` repeats the measurement. Intervals are 95 %, by advocate.",
        "",
        "## Table 5",
        "",
        "| test | means, s | difference by advocate | p | by pair | p | naive Welch | p | paper | p |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(test) for test in tests),
        "",
        "## The paper's numbers and the estimates",
        "",
        "| number | paper or world | estimate | inside |",
        "|---|---|---|---|",
        *(
            f"| {c.name} | {_number(c, c.expected)} | {_bounds(c)} | {'yes' if c.covered else '**no**'} |"
            for c in checked
        ),
        "",
        f"By the paper's arithmetic the saving is {reported.worth.paper_share:.2%} of case time.",
        "",
        *_figures(settings, reported),
    ]
    return "\n".join([*lines, common.describe(dict(machine)), ""])


def _row(test: SimulatedRow) -> str:
    cells = [
        f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}] | {one.p:.1e}"
        for one in (test.by_advocate, test.by_pair, test.naive)
    ]
    means = f"{test.means[0].value:.2f}, {test.means[1].value:.2f}"
    paper = f"{test.paper.difference:.2f} | {test.paper.p:.1e}"
    return f"| {test.arms[0]}, {test.arms[1]} | {means} | {' | '.join(cells)} | {paper} |"


def _number(claim: Claim, value: float) -> str:
    return f"{value:.2%}" if "share" in claim.name else f"{value:.2f}"


def _bounds(claim: Claim) -> str:
    found = claim.found
    value, low, high = (_number(claim, each) for each in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _figures(settings: World, reported: LifetimeReport) -> list[str]:
    inside, weeks = covered_weeks(settings, reported)
    trend, ours, agreement = reported.trend, reported.templates, reported.agreement
    assert isinstance(trend, MannKendall)
    assert isinstance(ours, TemplateTrend)
    assert isinstance(agreement, InducedAgreement)
    return [
        "## Figure 4: saving by week",
        "",
        f"![Saving by week]({NAME}-4.png)",
        "",
        f"{inside} of {weeks} weekly intervals contain the world's saving. Mann-Kendall: S = {trend.s:,.0f}, "
        f"Z = {trend.z:.2f}, p = {trend.p:.1e}, tau = {trend.tau:.2f}.",
        "",
        "## Figure 5: selection time by group and model",
        "",
        f"![Selection time by group]({NAME}-5.png)",
        "",
        "## Figure 6: saving against accuracy, by template",
        "",
        f"![Saving against accuracy]({NAME}-6.png)",
        "",
        f"{len(ours.points)} templates: Z = {ours.test.z:.2f}, p = {ours.test.p:.1e}; tau = {ours.tau:.2f} "
        f"by the bootstrap over advocates. Reliability: accuracy {ours.accuracy_reliability:.2f}, saving "
        f"{ours.saving_reliability:.2f}. Tau across halves, which share no rows: {ours.tau_across_halves:.2f}.",
        "",
        "## Agreement",
        "",
        f"The withheld five contain {agreement.holdout.value:.1%} of the holdout's choices, the shown five "
        f"{agreement.treatment.value:.1%} of the treatment's. This world has no feedback; the difference is "
        f"{agreement.induced.value:.1%} [{agreement.induced.low:.1%}, {agreement.induced.high:.1%}].",
        "",
    ]


if __name__ == "__main__":
    main()
