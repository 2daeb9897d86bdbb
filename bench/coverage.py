"""Coverage of the laws' 95 % intervals: each law is fitted to 500 noisy samples with known parameters.

`.venv/bin/python -m bench.coverage` writes docs/benchmarks/coverage.{json,md}, which the study's report reads.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from bench import common
from jaxtempl.scaling.laws import bootstrap, fitting
from jaxtempl.scaling.laws.ground_truth import GROUND_TRUTHS, GroundTruth

FITS, RESAMPLES = 500, 200
EXTRAPOLATION = 2.0  # factor beyond the largest value of the last variable, at which predictions are checked


def main() -> None:
    """Measure the coverage and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", type=int, default=FITS, help="samples of each law")
    fits = parser.parse_args().fits
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the worker processes
    machine = common.machine(("numpy", "scipy"))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        laws = {truth.law.name: _measure(truth, index, fits, pool) for index, truth in enumerate(GROUND_TRUTHS)}
    common.write(
        "coverage", {"machine": machine, "fits": fits, "resamples": RESAMPLES, "laws": laws}, _page(machine, fits, laws)
    )


def _measure(truth: GroundTruth, index: int, fits: int, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """Return the share of samples whose intervals cover each parameter and a prediction."""
    bar = tqdm(pool.map(_covered, [index] * fits, range(fits), chunksize=5), truth.law.name, fits, file=sys.stderr)
    covered = np.array(list(bar))
    names = [*(parameter.name for parameter in truth.law.parameters), "prediction"]
    return {
        "points": len(truth.x),
        "noise": truth.noise,
        "held": dict(zip(names, covered.mean(axis=0).tolist(), strict=True)),
    }


def _covered(index: int, seed: int) -> list[bool]:
    """Return whether the interval of each parameter, and of an extrapolated prediction, covers the truth."""
    truth = GROUND_TRUTHS[index]
    fit = fitting.fit(truth.law, truth.sample(seed), seed, RESAMPLES)
    x = truth.x[[-1]] * np.array([[1.0] * (truth.x.shape[1] - 1) + [EXTRAPOLATION]])
    x = np.minimum(x, 1.0) if truth.law.variables[-1] == "domain share" else x
    intervals = [*fit.parameters.values(), fit.predict(x)[0]]
    values = [*truth.parameters, float(np.exp(truth.law.log(truth.theta, x)[0][0]))]
    return [interval.low <= value <= interval.high for interval, value in zip(intervals, values, strict=True)]


def _page(machine: dict[str, Any], fits: int, laws: dict[str, Any]) -> str:
    threshold = float(stats.binom.ppf(0.025, fits, bootstrap.LEVEL) / fits)
    rows = [
        f"| {name} | {law['points']} | {law['noise']:.1%} | {_shares(law['held'], threshold)} |"
        for name, law in laws.items()
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
