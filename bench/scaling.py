"""The laptop study: forecasts made before the largest size was trained, the measurements, and the figures.

bin/scaling run --study=configs/studies/laptop.yaml --data=DATA --sizes=nano-0.6m,nano-0.9m,nano-1.3m,bert-tiny
.venv/bin/python -m bench.scaling --forecast=nano-1.9m    # writes docs/benchmarks/scaling.forecast.json; commit it
bin/scaling run --study=configs/studies/laptop.yaml --data=DATA
.venv/bin/python -m bench.scaling                         # writes docs/benchmarks/scaling.{json,md} and figures
.venv/bin/python -m bench.scaling --render                # writes scaling.md again from scaling.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import common
from jaxtempl import files
from jaxtempl.config.paths import CONFIGS
from jaxtempl.reports import html
from jaxtempl.scaling import results, study
from jaxtempl.scaling.columns import ResultRow
from jaxtempl.scaling.figures import StudyFigures
from jaxtempl.scaling.laws import selection
from jaxtempl.scaling.laws.analysis import analyse
from jaxtempl.scaling.laws.forecast import Forecaster, Scenario
from jaxtempl.scaling.report import FORMAT, to_dict
from jaxtempl.scaling.study import Cell
from jaxtempl.specs import flops
from jaxtempl.specs.interval import Interval

RUN = Path("runs/scaling/laptop")
STUDY = CONFIGS / "studies" / "laptop.yaml"
LABELS = 4_000
REPORT_METRICS = ("top1", "top3", "top5", "cross_entropy")  # of an evaluation's report
RESULT_METRICS = ("top1", "top3", "top5", "loss")  # of a study's results
CELL_COLUMNS = (
    *("cell", "size", "start", "corpus", "adapt_step", "tokens", "labels", "seed", "domain_loss", "general_loss"),
    *("zero_shot_top1", "zero_shot_likeliest_top1", "zero_shot_loss", "alignment"),
    *(name + end for name in RESULT_METRICS for end in ("", "_low", "_high")),
)
CORPUS_LAWS = ("D-CPT law", "data-constrained law")
FORECAST = common.RESULTS / "scaling.forecast.json"


def main() -> None:
    """Forecast, write what was measured, or render the page again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=RUN, help="folder of the study")
    parser.add_argument("--forecast", metavar="SIZE", help="size without cells in the study's folder")
    parser.add_argument("--baselines", type=Path, nargs="*", default=[], help="folders of evaluations on its dataset")
    parser.add_argument("--corpora", type=Path, help="folder of the study with other corpora, finished or not")
    parser.add_argument("--render", action="store_true", help="write the page from scaling.json")
    args = parser.parse_args()
    if args.forecast:
        files.write_json(FORECAST, forecast(args.run, args.forecast))
    elif args.render:
        (common.RESULTS / "scaling.md").write_text(page(files.read_json(common.RESULTS / "scaling.json")))
    else:
        write(args.run, args.baselines, args.corpora)


def write(run: Path, baselines: Sequence[Path], corpora: Path | None) -> None:
    """Write the page, its numbers and its figures."""
    rows = results.read(run)
    analysis = analyse(rows)
    figures = StudyFigures(rows, analysis)
    for name, figure in {
        "3a": figures.plot("flops_all", "loss"),
        "3b": figures.plot("tokens", "loss"),
        "3c": figures.loss_to_loss(),
        "8b": figures.plot("tokens", "top1"),
        "9b": figures.learning_curves(lambda size, corpus: run / "adapted" / f"{size}_{corpus}", "validation_loss"),
        "labels": figures.by_labels("loss"),
    }.items():
        if figure:
            html.save_png(figure, common.RESULTS / f"scaling-{name}.png")
    scatter = {name: selection.seed_scatter(selection.study_rows(rows), name) for name in ("loss", *selection.MISSED)}
    measured = {
        "format": FORMAT,
        "machine": common.machine(("jax", "flax", "numpy", "scipy")),
        "hours": sum(line["seconds"] for line in files.read_lines(run / "seconds.jsonl")) / 3600,
        "cells": [{name: row[name] for name in CELL_COLUMNS} for row in rows],
        "seed_scatter": scatter,
        "forecasts": _compare(rows),
        "baselines": {str(report["labels"]): report["baselines"] for report in map(_baselines, baselines)},
        **to_dict(analysis),
    }
    if corpora:
        measured["corpora"] = _corpora(corpora)
    measured = files.plain(measured)
    common.write("scaling", measured, page(measured))


def _baselines(folder: Path) -> dict[str, Any]:
    report = files.read_json(folder / "report.json")
    labels = files.read_json(Path(report["run"]) / "manifest.json")["labels"]
    scores = {
        name: {metric: baseline["metrics"][metric] for metric in REPORT_METRICS}
        for name, baseline in report["baselines"].items()
    }
    return {"labels": labels, "baselines": scores}


def _compare(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Return each forecast with the later measurement."""
    forecasts, by_name = files.read_json(FORECAST), {row["cell"]: row for row in rows}
    return [
        {"cell": cell, "quantity": quantity, "measured": by_name[cell][quantity], **interval}
        for cell, intervals in forecasts["cells"].items()
        if cell in by_name
        for quantity, interval in intervals.items()
    ]


def _corpora(folder: Path) -> dict[str, Any]:
    rows = results.read(folder)
    analysis = to_dict(analyse(rows))
    cells = [row for row in rows if row["corpus"] not in ("", "domain")]
    return {
        "cells": [{name: row[name] for name in CELL_COLUMNS} for row in cells],
        "laws": [law for law in analysis["laws"] if law["law"] in CORPUS_LAWS],
        **{name: analysis[name] for name in ("trends", "forgetting", "efficiency")},
    }


def page(measured: dict[str, Any]) -> str:
    """Return the page in Markdown; its discussion is scaling.notes.md."""
    parts = [
        "# The laptop study",
        *_table3(measured),
        *_figures(),
        *_forecasts(measured["forecasts"]),
        *_laws(measured),
        *(_other_corpora(measured["corpora"]) if "corpora" in measured else ()),
        (common.RESULTS / "scaling.notes.md").read_text(),
        common.describe(measured["machine"]) + f" The cells and models took {measured['hours']:.1f} hours of one core.",
    ]
    return "\n\n".join(parts) + "\n"


def _table3(measured: dict[str, Any]) -> list[str]:
    cells = [cell for cell in measured["cells"] if cell["labels"] == LABELS]
    last = max(cell["adapt_step"] for cell in cells)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["start"] != "adapted" or cell["adapt_step"] == last:
            groups.setdefault((cell["size"], cell["start"]), []).append(cell)
    rows = [
        f"| {size} | {start} | {len(group)} | " + " | ".join(_mean(group, name) for name in RESULT_METRICS) + " |"
        for (size, start), group in sorted(groups.items())
    ]
    for name, scores in measured["baselines"].get(str(LABELS), {}).items():
        intervals = [f"{Interval.from_json(scores[metric])}" for metric in REPORT_METRICS]
        rows.append(f"| {name} | | 1 | " + " | ".join(intervals) + " |")
    return [
        f"The paper's Table 3 on star, with {LABELS:,} labels and windows of 128 tokens: means over seeds, and 95 % "
        "intervals over test cases. The baselines see the same labels.",
        "\n".join(["| model | start | seeds | top-1 | top-3 | top-5 | loss |", "|---|---|---|---|---|---|---|", *rows]),
    ]


def _mean(cells: Sequence[dict[str, Any]], name: str) -> str:
    """Format the means of a metric and of its bounds over seeds."""
    means = (sum(cell[name + end] for cell in cells) / len(cells) for end in ("", "_low", "_high"))
    return f"{Interval(*means)}"


def _figures() -> list[str]:
    return [
        "![Figure 3a: loss against operations](scaling-3a.png) ![Figure 3b: loss against tokens](scaling-3b.png)",
        "![Figure 3c: loss against language-model loss](scaling-3c.png) ![Figure 8b: top-1](scaling-8b.png)",
        "![Figure 9b: validation loss by step](scaling-9b.png) ![Loss against labels](scaling-labels.png)",
    ]


def _forecasts(compared: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for quantity in sorted({forecast["quantity"] for forecast in compared}):
        forecasts = [forecast for forecast in compared if forecast["quantity"] == quantity]
        errors = [abs(forecast["value"] / forecast["measured"] - 1) for forecast in forecasts]
        covered = sum(forecast["low"] <= forecast["measured"] <= forecast["high"] for forecast in forecasts)
        last = next(one for one in forecasts if one["cell"].endswith(f"736_{LABELS}-labels_seed-0"))
        rows.append(
            f"| {quantity} | {Interval.from_json(last)} | {last['measured']:.3f} | "
            f"{sum(errors) / len(errors):.1%} | {max(errors):.1%} | {covered} of {len(forecasts)} |"
        )
    return [
        "## Forecasts",
        "Predictions for nano-1.9m by laws of the three smaller sizes, committed before it was trained "
        f"([scaling.forecast.json](scaling.forecast.json)): at its last checkpoint with {LABELS:,} labels, and over "
        "all cells.",
        "\n".join(
            [
                "| quantity | forecast, last | measured | mean error, all cells | maximum | inside the interval |",
                "|---|---|---|---|---|---|",
                *rows,
            ]
        ),
    ]


def _laws(measured: dict[str, Any]) -> list[str]:
    laws = measured["laws"]
    runs = {(cell["size"], cell["corpus"]) for cell in measured["cells"] if cell["start"] == "adapted"}
    holding = [
        f"| {law['law']} | {law['quantity']}, {law['subset']} | {law['r2']:.3f} | {_error(law)} | {law['summary']} |"
        for law in laws
        if not law["rejection"]
    ]
    rejected = [
        f"| {law['law']} | {law['quantity']}, {law['subset']} | {_error(law)} | {law['rejection']} |"
        for law in laws
        if law["rejection"]
    ]
    return [
        "## Laws",
        f"{len(holding)} of {len(laws)} hold. They share cells, and all rest on {len(runs)} adaptations, so they are "
        "not independent. Held-out error: mean relative error on the largest values when fitted to the others.",
        "\n".join(["| law | of | R² | held-out error | summary |", "|---|---|---|---|---|", *holding]),
        "Rejected laws:",
        "\n".join(["| law | of | held-out error | reason |", "|---|---|---|---|", *rejected]),
    ]


def _error(law: dict[str, Any]) -> str:
    return "" if law["heldout_error"] is None else f"{law['heldout_error']:.1%}"


def _other_corpora(corpora: dict[str, Any]) -> list[str]:
    rows = [
        f"| {cell['size']} | {cell['corpus']} | {cell['tokens']:,} | {cell['domain_loss']:.3f} | "
        f"{cell['general_loss']:.3f} | {cell['alignment']:.2f} | {cell['top1']:.3f} | {cell['loss']:.3f} |"
        for cell in corpora["cells"]
    ]
    return [
        "## Other corpora",
        "\n".join(
            [
                "| size | corpus | tokens | domain loss | general loss | alignment | top-1 | loss |",
                "|---|---|---|---|---|---|---|---|",
                *rows,
            ]
        ),
        *(
            f"- {law['law']}, {law['quantity']}, {law['subset']} ({law['points']} points): {law['summary']}"
            for law in corpora["laws"]
        ),
        *(_efficiency(corpus) for corpus in corpora["efficiency"] if corpus["ratio"]["by_size"]),
    ]


def _efficiency(corpus: dict[str, Any]) -> str:
    by_size = sorted((float(size), ratio) for size, ratio in corpus["ratio"]["by_size"].items())
    ratios = [
        f"{size:,.0f} parameters {'at least ' if ratio['at_least'] else ''}{ratio['value']:.1f} times"
        for size, ratio in by_size
    ]
    return f"- {corpus['special']} over {corpus['general']}: {', '.join(ratios)}"


def forecast(run: Path, size: str) -> dict[str, Any]:
    """Forecast each cell of a size that starts from an adapted model, with laws of the other sizes."""
    rows = results.read(run)
    if any(row["size"] == size for row in rows):
        raise SystemExit(f"{run} already has cells of {size}; forecast a size that has not been trained")
    forecaster, laptop = Forecaster(rows), study.read(STUDY)
    cells = [cell for cell in study.cells(laptop) if (cell.size, cell.start, cell.seed) == (size, "adapted", 0)]
    return {
        "format": FORMAT,
        "size": size,
        "from": sorted({row["size"] for row in forecaster.rows}),
        "laws": {
            quantity: {
                "law": law.fit.law.formula,
                "rejection": law.rejection,
                "heldout_error_of_the_largest": law.heldout_error,
            }
            for quantity, law in forecaster.laws.items()
        },
        "cells": {cell.name: _forecast_cell(forecaster, laptop, cell) for cell in cells},
    }


def _forecast_cell(forecaster: Forecaster, laptop: study.Study, cell: Cell) -> dict[str, Any]:
    parameters = flops.parameter_count(study.architecture_of(cell.size), embeddings=False)
    scenario = Scenario(parameters, laptop.tokens(cell.size, cell.step), cell.labels)
    return {name: interval._asdict() for name, interval in forecaster.predict(scenario).items()}


if __name__ == "__main__":
    main()
