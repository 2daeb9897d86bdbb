"""How often a 95 % interval of a law holds the truth: 500 fits a law to noisy points that are known to be of it.

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
from jaxtempl.scaling.laws import fitting
from jaxtempl.scaling.laws.ground_truth import KNOWN, Known

FITS, RESAMPLES = 500, 200
FURTHER = 2.0  # times the greatest value of the last variable: where predictions are looked at, too


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", type=int, default=FITS)
    fits = parser.parse_args().fits
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes
    machine = common.machine(("numpy", "scipy"))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        laws = {known.law.name: _law(known, index, fits, pool) for index, known in enumerate(KNOWN)}
    common.write(
        "coverage", {"machine": machine, "fits": fits, "resamples": RESAMPLES, "laws": laws}, _page(machine, fits, laws)
    )


def _law(known: Known, index: int, fits: int, pool: ProcessPoolExecutor) -> dict[str, Any]:
    bar = tqdm(pool.map(_held, [index] * fits, range(fits), chunksize=5), known.law.name, fits, file=sys.stderr)
    held = np.array(list(bar))
    names = [*(parameter.name for parameter in known.law.parameters), "prediction"]
    return {
        "points": len(known.x),
        "noise": known.noise,
        "held": dict(zip(names, held.mean(axis=0).tolist(), strict=True)),
    }


def _held(index: int, seed: int) -> list[bool]:
    """Whether the interval of each parameter, and of a prediction further on, holds the truth."""
    known = KNOWN[index]
    found = fitting.fit(known.law, known.data(seed), seed, RESAMPLES)
    truths = [np.exp(t) if p.logarithm else t for t, p in zip(known.theta, known.law.parameters, strict=True)]
    further = known.x[[-1]] * np.array([[1.0] * (known.x.shape[1] - 1) + [FURTHER]])
    further = np.minimum(further, 1.0) if known.law.variables[-1] == "domain share" else further
    values = [*found.parameters.values(), found.predict(further)[0]]
    truths.append(float(np.exp(known.law.log(known.theta, further)[0][0])))
    return [value.low <= truth <= value.high for value, truth in zip(values, truths, strict=True)]


def _page(machine: dict[str, Any], fits: int, laws: dict[str, Any]) -> str:
    least = stats.binom.ppf(0.025, fits, fitting.LEVEL) / fits
    rows = [
        f"| {name} | {law['points']} | {law['noise']:.1%} | "
        + ", ".join(
            f"{key} {share:.1%}" if share >= least else f"**{key} {share:.1%}**" for key, share in law["held"].items()
        )
        + " |"
        for name, law in laws.items()
    ]
    return "\n".join(
        [
            "# How far the laws' intervals can be believed",
            "",
            f"{fits} sets of noisy points of each law, at the sizes of a study; how often the 95 % interval of each",
            f"parameter held the truth, and of a prediction at {FURTHER:g} times the greatest value. **Bold** is fewer",
            f"than {least:.1%}, which would be chance in one of forty. `python -m bench.coverage` repeats it.",
            "",
            "| law | points | noise | held the truth |",
            "|---|---|---|---|",
            *rows,
            "",
            common.described(machine),
            "",
        ]
    )


if __name__ == "__main__":
    main()
