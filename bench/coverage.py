"""Coverage of the laws' 95 % intervals: each law is fitted to noisy samples with known parameters.

`.venv/bin/python -m bench.coverage` writes docs/benchmarks/coverage.{json,md}, which the study's report reads.
"""

import argparse
import sys
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from tqdm import tqdm

from bench import common
from jaxtempl.scaling.laws import bootstrap, fitting
from jaxtempl.scaling.laws.fitting import Observations
from jaxtempl.scaling.laws.ground_truth import GROUND_TRUTHS, GroundTruth

FITS, RESAMPLES = 100, 100
EXTRAPOLATION = 2.0  # factor beyond the largest value of the last variable, at which predictions are checked
BY_NOISE = ("Chinchilla's law", "power law in tokens")
UNANNEALED = 0.03  # relative excess of a checkpoint's loss early in a run over that of a run which ends there


class Sample(NamedTuple):
    """Points of a law with the errors of one kind of noise.

    Attributes:
        x: Points.
        errors: Errors of the logarithms.
        run: Run of each point: its size.
    """

    x: Float[np.ndarray, "N K"]
    errors: Float[np.ndarray, " N"]
    run: Int[np.ndarray, " N"]


def main() -> None:
    """Measure the coverage and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", type=int, default=FITS, help="samples of each law")
    fits = parser.parse_args().fits
    machine = common.machine(("numpy", "scipy"))
    laws = {truth.law.name: _measure(truth, "independent", fits) for truth in GROUND_TRUTHS}
    known = {truth.law.name: truth for truth in GROUND_TRUTHS}
    noise = {kind: {name: _measure(known[name], kind, fits) for name in BY_NOISE} for kind in NOISES}
    content = {"machine": machine, "fits": fits, "resamples": RESAMPLES, "laws": laws, "noise": noise}
    common.write("coverage", content, _page(machine, fits, laws, noise))


def _measure(truth: GroundTruth, kind: str, fits: int) -> dict[str, Any]:
    """Return the share of samples whose intervals cover each parameter and a prediction."""
    bar = tqdm(range(fits), f"{truth.law.name}, {kind}", file=sys.stderr)
    covered = np.array([_covered(truth, kind, seed) for seed in bar])
    names = [*(parameter.name for parameter in truth.law.parameters), "prediction"]
    held = dict(zip(names, covered.mean(axis=0).tolist(), strict=True))
    return {"points": len(truth.x), "noise": truth.noise, "held": held}


def _covered(truth: GroundTruth, kind: str, seed: int) -> list[bool]:
    """Return whether the interval of each parameter, and of an extrapolated prediction, covers the truth."""
    sample = _sample(truth, kind, np.random.default_rng(seed))
    y = np.exp(truth.law.log(truth.theta, sample.x)[0] + sample.errors)
    data = Observations(sample.x, y, np.arange(len(y)) if kind == "independent" else sample.run)
    fit = fitting.fit(truth.law, data, seed, RESAMPLES, start=truth.theta)
    x = truth.x[[-1]] * np.array([[1.0] * (truth.x.shape[1] - 1) + [EXTRAPOLATION]])
    x = np.minimum(x, 1.0) if truth.law.variables[-1] == "domain share" else x
    intervals = [*fit.parameters.values(), fit.predict(x)[0]]
    values = [*truth.parameters, float(np.exp(truth.law.log(truth.theta, x)[0][0]))]
    return [interval.low <= value <= interval.high for interval, value in zip(intervals, values, strict=True)]


def _sample(truth: GroundTruth, kind: str, random: np.random.Generator) -> Sample:
    """Return the points of a law with errors of the law's standard deviation, of one kind."""
    several = truth.x.shape[1] > 1
    run = np.unique(truth.x[:, 0], return_inverse=True)[1].astype(int) if several else np.zeros(len(truth.x), int)
    place = np.log(truth.x[:, -1])
    place = (place - place.min()) / np.ptp(place)  # along a run, from 0 to 1
    errors, of_run = random.normal(0, truth.noise, len(run)), random.normal(0, truth.noise, run.max() + 1)
    phase = random.uniform(0, 2 * np.pi, run.max() + 1)
    kept = np.ones(len(run), bool)
    if kind == "heteroscedastic":
        errors *= 2 - 1.5 * place
    if kind == "an offset for each run":
        errors = errors / 2 + of_run[run]
    if kind == "smooth along a run":
        errors = errors / 2 + of_run[run] * np.sin(2 * np.pi * place + phase[run]) * np.sqrt(2)
    if kind == "an outlier":
        errors[random.integers(len(errors))] += 10 * truth.noise
    if kind == "an interrupted largest run":
        kept = (run < run.max()) | (place < 0.5)
    if kind == "checkpoints that are not annealed":
        errors += UNANNEALED * (1 - place)
    return Sample(truth.x[kept], errors[kept], run[kept])


NOISES = (
    "heteroscedastic",
    "an offset for each run",
    "smooth along a run",
    "an outlier",
    "an interrupted largest run",
    "checkpoints that are not annealed",
)


def _page(machine: dict[str, Any], fits: int, laws: dict[str, Any], noise: dict[str, Any]) -> str:
    threshold = float(stats.binom.ppf(0.025, fits, bootstrap.LEVEL) / fits)
    rows = [
        f"| {name} | {law['points']} | {law['noise']:.1%} | {_shares(law['held'], threshold)} |"
        for name, law in laws.items()
    ]
    by_noise = [
        f"| {kind} | {name} | {_shares(law['held'], threshold)} |"
        for kind, of in noise.items()
        for name, law in of.items()
    ]
    return "\n".join(
        [
            "# Coverage of the laws' intervals",
            "",
            f"{fits} noisy samples of each law, at the sizes of a study: the share whose 95 % interval covers",
            f"each parameter, and a prediction at {EXTRAPOLATION:g} times the largest value. **Bold**: below the lower",
            f"limit of chance, {threshold:.1%} (one in forty). `python -m bench.coverage` repeats the measurement.",
            "",
            "| law | points | noise | coverage |",
            "|---|---|---|---|",
            *rows,
            "",
            "With other errors of the same size. The points of a size are one run, which the intervals resample whole;",
            "the power law has a single run.",
            "",
            "| errors | law | coverage |",
            "|---|---|---|",
            *by_noise,
            "",
            common.describe(machine),
            "",
        ]
    )


def _shares(shares: dict[str, float], threshold: float) -> str:
    """Format coverages, with those below the threshold in bold."""
    return ", ".join(
        f"{name} {share:.1%}" if share >= threshold else f"**{name} {share:.1%}**" for name, share in shares.items()
    )


if __name__ == "__main__":
    main()
