"""The laws on published tables: published values, ours, an independent global optimiser, and the verdict.

JAXTEMPL_LAW_DATA names a folder with the tables of `TABLES`, made from the repositories that they name.
`.venv/bin/python -m bench.laws` writes docs/benchmarks/laws.{json,md}.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.csv as pc
from scipy import optimize
from tqdm import tqdm

from bench import common
from jaxtempl.scaling.laws import catalog, goodness_of_fit, special_forms
from jaxtempl.scaling.laws.fitting import Fit, Observations
from jaxtempl.scaling.laws.forms import Law, LawParameter, scales_of
from jaxtempl.specs.interval import UNDEFINED

EXTRAPOLATION = 8  # Lin's curves predict labels beyond an eighth of the most
MUENNIGHOFF = {"E": np.exp(0.6254804), "A": np.exp(6.255414), "a": 0.3526596, "B": np.exp(7.3049974), "b": 0.3526596}
SOURCES = {
    "gemstones": (
        "mcleish7/gemstone-scaling-laws @ 5f42047, wandb_dfs",
        "McLeish et al., 2025, arXiv 2502.06857",
        "MIT",
    ),
    "kyo-takano-llm": (
        "kyo-takano/chinchilla @ 75e5858, examples/llm/df.csv",
        "a reading of Hoffmann's figure",
        "Apache-2.0",
    ),
    "muennighoff-c4": (
        "huggingface/datablations @ 1370131, utils",
        "Muennighoff et al., 2023, arXiv 2305.16264",
        "Apache-2.0",
    ),
    "gadre-overtraining": ("mlfoundations/scaling @ a003c49, exp_data", "Gadre et al., 2024, arXiv 2403.08540", "MIT"),
    "pythia-evals": (
        "EleutherAI/pythia @ a19eecb, evals/pythia-v1",
        "Biderman et al., 2023, arXiv 2304.01373",
        "Apache-2.0",
    ),
    "alabdulmohsin-nmt": (
        "IBM/ColPret @ 16f23bb, aggregated_eval",
        "Alabdulmohsin et al., 2022, arXiv 2209.06640",
        "MIT",
    ),
    "lin-finetuning": (
        "linhaowei1/Fine-tuning-Scaling-Law @ 5214568, benchmark",
        "Lin et al., 2024, arXiv 2402.02314",
        "Apache-2.0",
    ),
}


class Case(NamedTuple):
    """A law on some points of a published table.

    Attributes:
        name: Name of the points.
        law: Law.
        data: Points.
        held_out: Mask of the points to predict; None for the largest values of each variable.
        delta: Threshold of the Huber loss; None for the fit's own.
        fixed: Parameters that the publication fixes.
        published: Published values, by name.
    """

    name: str
    law: Law
    data: Observations
    held_out: Any = None
    delta: float | None = None
    fixed: Mapping[str, float] = {}
    published: Mapping[str, float] = {}


def main() -> None:
    """Fit every law to every table and write the results."""
    folder = os.environ.get("JAXTEMPL_LAW_DATA")
    if not folder or not Path(folder).is_dir():
        raise SystemExit("JAXTEMPL_LAW_DATA names no folder; set it to one with the tables that this module names")
    machine = common.machine(("numpy", "scipy"))
    results = [_measure(case) for case in tqdm(list(_cases(Path(folder))), "laws", file=sys.stderr)]
    common.write("laws", {"machine": machine, "results": results}, _page(machine, results))


def _cases(folder: Path) -> Iterator[Case]:
    for kind, published in (
        (
            "hot",
            {"ln E": 0.76226, "ln A": 5.36134, "a": 0.29287, "ln B": 15.41599, "b": 0.71287, "objective": 0.00198161},
        ),
        ("cooled", {"ln E": 0.72979, "ln A": 5.41972, "a": 0.30027, "ln B": 12.51387, "b": 0.58024}),
    ):
        data = _points(_rows(folder, f"gemstones-{kind}"), ("parameters", "tokens"), "loss", "run")
        yield Case(f"gemstones-{kind}", catalog.CHINCHILLA, data, delta=1e-3, published=published)
    chinchilla = _points(_rows(folder, "kyo-takano-llm"), ("parameters", "tokens"), "loss")
    besiroglu = {"E": 1.8172, "a": 0.3478, "b": 0.3658}  # arXiv 2404.10102, its reading of the same figure
    yield Case("kyo-takano-llm", catalog.CHINCHILLA, chinchilla, published=besiroglu)
    yield Case("kyo-takano-llm", catalog.KAPLANS, chinchilla)
    yield from _data_constrained(folder)
    yield from _overtrained(folder)
    yield from _accuracies(folder)
    yield from _translations(folder)
    yield from _finetuned(folder)


def _data_constrained(folder: Path) -> Iterator[Case]:
    rows = [row for row in _rows(folder, "muennighoff-c4") if row["in_published_fit"] == 1]
    data, law = _points(rows, ("parameters", "tokens", "unique_tokens"), "loss", "run"), special_forms.DATA_CONSTRAINED
    published = {"R_D": 15.387756, "R_N": 5.309743, "objective": 0.0158259}
    yield Case("muennighoff-c4, E, A, B, a, b fixed", law, data, delta=1e-3, fixed=MUENNIGHOFF, published=published)
    yield Case("muennighoff-c4, all fitted", law, data)


def _overtrained(folder: Path) -> Iterator[Case]:
    rows = _rows(folder, "gadre-overtraining")
    for dataset, loss in (("c4_original", "loss_c4"), ("rw_original", "loss_refinedweb"), ("rpj", "loss_redpajama")):
        for least in (0, 1):
            kept = [row for row in rows if row["dataset"] == dataset and float(row["multiplier"]) >= least]
            data = _points(kept, ("parameters_body", "tokens"), loss, "run")
            which = "all" if not least else "at least 20 tokens a parameter"
            yield Case(f"gadre-overtraining, {dataset}, {which}", catalog.CHINCHILLA, data)


def _accuracies(folder: Path) -> Iterator[Case]:
    rows = [row for row in _rows(folder, "pythia-evals") if row["lambada"] > 0.01]
    for size in dict.fromkeys(row["size"] for row in rows):
        data = _points([row for row in rows if row["size"] == size], ("tokens",), "lambada")
        for law in (special_forms.LOG_POWER, special_forms.SATURATING):
            yield Case(f"pythia-evals, LAMBADA, {size}", law, data)


def _translations(folder: Path) -> Iterator[Case]:
    rows = _rows(folder, "alabdulmohsin-nmt")
    for model in dict.fromkeys(row["Model"] for row in rows):
        kept = [row for row in rows if row["Model"] == model]
        held_out = np.array([row["Training"] == 0 for row in kept])
        data = _points(kept, ("Seen Examples",), "Loss")
        yield Case(f"alabdulmohsin-nmt, {model}", catalog.IN_TOKENS, data, held_out)


def _finetuned(folder: Path) -> Iterator[Case]:
    rows = [row for row in _rows(folder, "lin-finetuning") if row["labels"] > 0]
    for dataset, model in dict.fromkeys((row["dataset"], row["model"]) for row in rows):
        kept = [row for row in rows if (row["dataset"], row["model"]) == (dataset, model)]
        data = _points(kept, ("labels",), "loss")
        held_out = data.x[:, 0] > data.x[:, 0].max() / EXTRAPOLATION
        yield Case(f"lin-finetuning, {dataset}, {model}", special_forms.RECTIFIED, data, held_out)


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return pc.read_csv(folder / f"{name}.csv").to_pylist()


def _points(rows: list[dict[str, Any]], x: tuple[str, ...], y: str, group: str = "") -> Observations:
    runs = [str(row[group]) for row in rows] if group else list(range(len(rows)))
    return Observations(
        np.array([[float(row[name]) for name in x] for row in rows]),
        np.array([float(row[y]) for row in rows]),
        np.unique(runs, return_inverse=True)[1].astype(int),
    )


def _measure(case: Case) -> dict[str, Any]:
    assessed = goodness_of_fit.assess(
        case.law, case.data, held_out=case.held_out, delta=case.delta, fixed=dict(case.fixed)
    )
    assert assessed
    return {
        "table": case.name,
        "law": case.law.name,
        "points": len(case.data.y),
        "published": dict(case.published),
        "ours": {name: _value(assessed.fit, name) for name in case.published},
        "parameters": {name: list(interval) for name, interval in assessed.fit.parameters.items()},
        "delta": assessed.fit.delta,
        "objective": assessed.fit.objective,
        "global_objective": None if case.fixed else _global(assessed.fit),
        "r2": assessed.fit.r2,
        "misfit": assessed.misfit,
        "noise": None if np.isnan(assessed.noise) else assessed.noise,
        "heldout": {name: None if np.isnan(one.error) else one.error for name, one in assessed.heldout.items()},
        "rejection": assessed.rejection,
        "remarks": list(assessed.remarks),
    }


def _value(fit: Fit, name: str) -> float:
    if name == "objective":
        return fit.objective
    value = fit.parameters[name.removeprefix("ln ")].value
    return float(np.log(value)) if name.startswith("ln ") else value


def _global(fit: Fit) -> float:
    """Return the objective that scipy's differential evolution reaches in the same bounds and scaled units."""
    scales = scales_of(fit.law, fit.data.x, fit.data.y)
    at_points, log_y = fit.law.at(fit.data.x / scales.x), np.log(fit.data.y / scales.y)

    def objective(theta: Any) -> Any:  # [P, S], as scipy passes a population
        size = np.abs(log_y - at_points(np.atleast_2d(theta.T))[0])
        return np.where(size <= fit.delta, size**2 / 2, fit.delta * (size - fit.delta / 2)).sum(axis=1)

    bounds = [_searched(p) for p in fit.law.parameters]
    found: Any = optimize.differential_evolution(
        objective, bounds, maxiter=400, popsize=20, rng=0, vectorized=True, updating="deferred", polish=False, tol=1e-8
    )

    def one(theta: Any) -> float:
        return float(objective(theta)[0])

    polished: Any = optimize.minimize(
        one, found.x, method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-12, "xatol": 1e-9}
    )
    return float(min(found.fun, polished.fun))


def _searched(parameter: LawParameter) -> tuple[float, float]:
    """Return bounds without the far regions, in which a law is flat and a population is lost."""
    low, high = parameter.bounds
    return max(low, -8.0), min(high, 8.0)


def _page(machine: dict[str, Any], results: list[dict[str, Any]]) -> str:
    rows = [r for r in results if not r["table"].startswith("lin-")]
    lin = [r for r in results if r["table"].startswith("lin-")]
    close = [r for r in results if r["global_objective"] is not None]
    worse = [r for r in close if r["objective"] > r["global_objective"] * (1 + 1e-3) + 1e-9]
    names = ", ".join(f"{r['law']} on {r['table']}" for r in worse)
    return "\n".join(
        [
            "# Laws on published tables",
            "",
            "Each law is fitted to tables that others published, and judged by [the rule](../laws.md).",
            "Held-out error: on the largest values of each variable, or on the publication's hold-out.",
            "",
            f"In {len(close) - len(worse)} of {len(close)} fits, scipy's differential evolution finds no objective",
            "that is 0.1 % lower" + (f"; it does for {names}." if worse else "."),
            "",
            "| law | table | points | published | ours | misfit | held-out error | verdict |",
            "|---|---|---|---|---|---|---|---|",
            *map(_row, rows),
            "",
            *_lin(lin),
            "",
            "| table | repository and commit | paper | licence |",
            "|---|---|---|---|",
            *(
                f"| {name} | {repository} | {paper} | {licence} |"
                for name, (repository, paper, licence) in SOURCES.items()
            ),
            "",
            common.describe(machine),
            "",
        ]
    )


def _row(r: dict[str, Any]) -> str:
    published, ours = (_values(r[key]) for key in ("published", "ours"))
    if not r["ours"]:
        ours = _values({name: value[0] for name, value in r["parameters"].items()})
    errors = ", ".join(f"{name} {error:.1%}" for name, error in r["heldout"].items() if error is not None)
    verdict = f"rejected: {r['rejection']}" if r["rejection"] else "accepted"
    notes = "; ".join([verdict, *r["remarks"]])
    return (
        f"| {r['law']} | {r['table']} | {r['points']} | {published} | {ours} | {r['misfit']:.2%} | {errors} | {notes} |"
    )


def _values(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.5g}" for name, value in values.items()) or UNDEFINED


def _lin(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the table of Lin's curves, by dataset."""
    yield f"The rectified law on Lin's {len(results)} curves, fitted to an eighth of the labels to predict the rest."
    yield ""
    yield "| dataset | curves | median misfit | median held-out error | accepted |"
    yield "|---|---|---|---|---|"
    for dataset in dict.fromkeys(r["table"].split(", ")[1] for r in results):
        of = [r for r in results if r["table"].split(", ")[1] == dataset]
        misfit = np.median([r["misfit"] for r in of])
        error = np.median([next(iter(r["heldout"].values())) for r in of])
        yield f"| {dataset} | {len(of)} | {misfit:.2%} | {error:.1%} | {sum(not r['rejection'] for r in of)} |"


if __name__ == "__main__":
    main()
