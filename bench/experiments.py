"""Validity of the statistics of experiments: false rejections, coverage, looks, power, sample ratios, real picks.

`.venv/bin/python -m bench.experiments` writes docs/benchmarks/experiments.{json,md}. Finished configurations are kept
in runs/bench-experiments/, where an interrupted measurement resumes. JAXTEMPL_AB_DATA names the
folder with star_selections.csv.gz.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from tqdm import tqdm

from bench import common, experiment_trials
from bench.experiment_trials import Conclusions
from jaxtempl import files

TRIALS = 2000
FEWER = 1000  # trials where a range is wide or a trial is slow
KEPT = common.ROOT / "runs" / "bench-experiments"
UNITS = ("pair", "advocate")
POWER_TEXT = (
    "A plan from a two-week pilot promises a power for a saving; the share of two-week tests of the same advocates "
    "that find it must be within 3 points. Pairs are assigned."
)


class Range(NamedTuple):
    """The range that a rate must lie in."""

    low: float
    high: float


class Section(NamedTuple):
    """Configurations that measure the same.

    Attributes:
        title: Heading.
        text: What a trial is.
        trials: Trial of each configuration, by name.
        due: Methods that must keep a range; the others are shown for comparison.
        repeats: Number of trials of each configuration.
    """

    title: str
    text: str
    trials: Mapping[str, Callable[[int], Conclusions]]
    due: Mapping[str, Range]
    repeats: int = TRIALS


def sections() -> list[Section]:
    """Return what is measured."""
    worlds = {f"{unit}s, {count} advocates": (unit, count) for unit in UNITS for count in (150, 30)}

    def each(function: Callable[..., Conclusions]) -> dict[str, Callable[[int], Conclusions]]:
        return {name: functools.partial(function, unit=unit, advocates=n) for name, (unit, n) in worlds.items()}

    level = {"headline": Range(0.04, 0.06)}
    return [
        Section(
            "Two equal arms",
            "Share of simulated tests of two equal models that reject at 5 %. Headline: the test by advocate, or "
            f"re-randomisation of the assigned unit where the effective clusters are under {experiment_trials.FEW}.",
            each(experiment_trials.null),
            level,
        ),
        Section(
            "Two equal arms over real picks",
            f"The same over {len(experiment_trials.real_picks(real_file()).seconds):,} picks of 111 people "
            "(RasaHQ/STAR), to which arms are assigned at random.",
            {f"{unit}s": functools.partial(experiment_trials.real, unit=unit, path=real_file()) for unit in UNITS},
            level,
        ),
        Section(
            "Coverage",
            "Share of 95 % intervals that contain the truth, for a saving of 35 % whose SD over advocates is .3 of it.",
            each(experiment_trials.coverage),
            {name: Range(0.93, 0.97) for name in ("by advocate", "by advocate, log ratio")},
            FEWER,
        ),
        Section(
            "Daily looks",
            "Share of tests of two equal models that reject at any of 14 daily looks.",
            each(experiment_trials.looks),
            {"confidence sequence": Range(0, 0.05)},
            FEWER,
        ),
        Section("Power", POWER_TEXT, power_trials(), {}, FEWER),
        Section("Sample ratio", "Share of tests whose sample ratio is flagged at p < .001.", ratio_trials(), {}),
    ]


def real_file() -> Path:
    """Return the file of real picks."""
    path = Path(os.environ.get("JAXTEMPL_AB_DATA", "")) / "star_selections.csv.gz"
    if not path.is_file():
        raise SystemExit(f"{path} is missing; set JAXTEMPL_AB_DATA to the folder with star_selections.csv.gz")
    return path


def power_trials() -> dict[str, Callable[[int], Conclusions]]:
    """Return the trials of the power."""
    return {
        f"{wanted:.0%} planned, {count} advocates": functools.partial(
            experiment_trials.promise, advocates=count, wanted=wanted
        )
        for count in (150, 30)
        for wanted in (0.8,)
    }


def ratio_trials() -> dict[str, Callable[[int], Conclusions]]:
    """Return the trials of the sample ratio."""
    settings = {
        "98 to 2, nothing lost": (0.0, (0.98, 0.02)),
        "50 to 50, nothing lost": (0.0, (0.5, 0.5)),
        "50 to 50, 10 % of the second arm lost": (0.1, (0.5, 0.5)),
        "50 to 50, 20 % of the second arm lost": (0.2, (0.5, 0.5)),
        "98 to 2, half of the 2 % lost": (0.5, (0.98, 0.02)),
    }
    return {
        name: functools.partial(experiment_trials.sample_ratio, lost=lost, weights=weights)
        for name, (lost, weights) in settings.items()
    }


def main() -> None:
    """Measure what is not kept yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the worker processes
    machine = common.machine(("numpy", "scipy"))
    with ProcessPoolExecutor(options.processes) as pool:
        measured = [{name: measure(section, name, pool) for name in section.trials} for section in sections()]
    content = {
        section.title: {"trials": section.repeats, "rates": rates}
        for section, rates in zip(sections(), measured, strict=True)
    }
    results = {"format": 1, "machine": machine, "sections": content}
    common.write("experiments", results, page(results))


def measure(section: Section, name: str, pool: ProcessPoolExecutor) -> dict[str, float]:
    """Return the rate of each method over all trials, from the kept file if there is one."""
    path = KEPT / f"{section.title}-{name}-{section.repeats}.json".replace(" ", "_")
    if path.is_file():
        return files.read_json(path)["rates"]
    trials = pool.map(section.trials[name], range(section.repeats), chunksize=10)
    found = list(tqdm(trials, f"{section.title}: {name}", section.repeats, file=sys.stderr))
    rates = {method: float(np.mean([one[method] for one in found])) for method in found[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"rates": rates})
    return rates


def page(results: Mapping[str, Any]) -> str:
    """Return the page in Markdown."""
    lines = [
        "# Validity of the statistics of experiments",
        "",
        f"Of {TRIALS:,} trials, a rate near 5 % has an error of chance of {error(TRIALS):.1%} to either side, and of "
        f"{FEWER:,} one of {error(FEWER):.1%}.",
        "**Bold**: outside of the range that its column states. `python -m bench.experiments` repeats the measurement.",
    ]
    for section in sections():
        rates = results["sections"][section.title]["rates"]
        text = f"{section.text} {section.repeats:,} trials of each row."
        lines += ["", f"## {section.title}", "", text, "", *table(section, rates)]
    return "\n".join([*lines, "", common.describe(results["machine"]), ""])


def error(trials: int) -> float:
    """Return the half width of the 95 % interval of a rate of 5 %."""
    return float(stats.norm.isf(0.025) * np.sqrt(0.05 * 0.95 / trials))


def table(section: Section, rates: Mapping[str, Any]) -> list[str]:
    """Return the rates of a section as a table."""
    methods = list(next(iter(rates.values())))
    names = [
        f"{name} ({due.low:.0%} to {due.high:.0%})" if (due := section.due.get(name)) else name for name in methods
    ]
    rows = [
        f"| {name} | {' | '.join(cell(section, m, values[m]) for m in methods)} |" for name, values in rates.items()
    ]
    return [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(methods)}", *rows]


def cell(section: Section, method: str, rate: float) -> str:
    """Return a rate, bold if it is outside of its range."""
    due = section.due.get(method)
    return f"**{rate:.1%}**" if due and not due.low <= rate <= due.high else f"{rate:.1%}"


if __name__ == "__main__":
    main()
