"""The laptop study: what its laws foretold of the size that was not trained yet, what it measured, and its pictures.

bin/scaling run --study=configs/studies/laptop.yaml --data=DATA --sizes=nano-0.6m,nano-0.9m,nano-1.3m,bert-tiny
.venv/bin/python -m bench.scaling --foretell=nano-1.9m    # writes docs/benchmarks/scaling.foretold.json; commit it
bin/scaling run --study=configs/studies/laptop.yaml --data=DATA
.venv/bin/python -m bench.scaling                         # writes docs/benchmarks/scaling.{json,md} and pictures
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
from jaxtempl.scaling.figures import Drawer
from jaxtempl.scaling.laws import analysis, data
from jaxtempl.scaling.laws.forecast import Outlook, Point
from jaxtempl.scaling.laws.mixtures import Ratio
from jaxtempl.scaling.laws.selection import Row
from jaxtempl.scaling.report import told
from jaxtempl.scaling.study import Cell
from jaxtempl.specs import flops

RUN = Path("runs/scaling/laptop")
STUDY = CONFIGS / "studies" / "laptop.yaml"
LABELS = 4_000
MEASURES = ("top1", "top3", "top5", "cross_entropy")  # of an evaluation
MEASURED = ("top1", "top3", "top5", "loss")  # of a study's results
SHOWN = (
    *("cell", "size", "start", "corpus", "adapt_step", "tokens", "labels", "seed", "domain_loss", "general_loss"),
    *("exam_top1", "exam_likeliest_top1", "exam_loss", "alignment"),
    *(name + end for name in MEASURED for end in ("", "_low", "_high")),
)
FORETOLD = common.RESULTS / "scaling.foretold.json"


def main() -> None:
    """Foretells, or writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=RUN, help="folder of the study")
    parser.add_argument("--foretell", metavar="SIZE", help="one that the study's folder has no cells of")
    parser.add_argument("--baselines", type=Path, nargs="*", default=[], help="folders of evaluations on its dataset")
    parser.add_argument("--corpora", type=Path, help="folder of the study with other corpora, as far as it went")
    asked = parser.parse_args()
    if asked.foretell:
        files.write_json(FORETOLD, foretold(asked.run, asked.foretell))
    else:
        write(asked.run, asked.baselines, asked.corpora)


def write(run: Path, baselines: Sequence[Path], corpora: Path | None) -> None:
    """The page, its numbers and its pictures."""
    rows = results.read(run)
    found = analysis.of(rows)
    drawer = Drawer(rows, found)
    for name, figure in {
        "3a": drawer.against("flops_all", "loss"),
        "3b": drawer.against("tokens", "loss"),
        "3c": drawer.loss_to_loss(),
        "8b": drawer.against("tokens", "top1"),
        "9b": drawer.learning(lambda size, corpus: run / "adapted" / f"{size}_{corpus}", "validation_loss"),
        "labels": drawer.by_labels("loss"),
    }.items():
        if figure:
            html.save_png(figure, common.RESULTS / f"scaling-{name}.png")
    measured = {
        "machine": common.machine(("jax", "flax", "numpy", "scipy")),
        "hours": sum(line["seconds"] for line in files.read_lines(run / "seconds.jsonl")) / 3600,
        "cells": [{name: row[name] for name in SHOWN} for row in rows],
        "seed_scatter": {name: data.seed_scatter(data.own(rows), name) for name in ("loss", *data.MISSED)},
        "foretold": _compared(rows),
        "baselines": {str(report["labels"]): report["baselines"] for report in map(_baselines, baselines)},
        **told(found),
    }
    if corpora:
        measured["corpora"] = _corpora(corpora)
    common.write("scaling", files.plain(measured), page(measured))


def _baselines(folder: Path) -> dict[str, Any]:
    report = files.read_json(folder / "report.json")
    labels = files.read_json(Path(report["run"]) / "manifest.json")["labels"]
    scores = {name: {k: one["metrics"][k] for k in MEASURES} for name, one in report["baselines"].items()}
    return {"labels": labels, "baselines": scores}


def _compared(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What was foretold beside what was measured then."""
    said, by_name = files.read_json(FORETOLD), {row["cell"]: row for row in rows}
    return [
        {"cell": cell, "quantity": quantity, "measured": by_name[cell][quantity], **value}
        for cell, values in said["cells"].items()
        if cell in by_name
        for quantity, value in values.items()
    ]


def _corpora(folder: Path) -> dict[str, Any]:
    rows = results.read(folder)
    found = analysis.of(rows)
    kept = ("D-CPT law", "data-constrained law")
    return {
        "cells": [{name: row[name] for name in SHOWN} for row in rows if row["corpus"] not in ("", "domain")],
        "laws": [law for law in told(found)["laws"] if law["law"] in kept],
        "trends": found.trends,
        "forgetting": found.forgetting,
        "worth": found.worth,
    }


def page(measured: dict[str, Any]) -> str:
    """The page in Markdown; what it means is in scaling.notes.md."""
    parts = [
        "# The laptop study",
        *_table3(measured),
        *_pictures(),
        *_foretold_table(measured["foretold"]),
        *_laws(measured["laws"]),
        *(_other_corpora(measured["corpora"]) if "corpora" in measured else ()),
        (common.RESULTS / "scaling.notes.md").read_text(),
        common.described(measured["machine"])
        + f" The cells and models took {measured['hours']:.1f} hours of one core.",
    ]
    return "\n\n".join(parts) + "\n"


def _table3(measured: dict[str, Any]) -> list[str]:
    cells = [cell for cell in measured["cells"] if cell["labels"] == LABELS]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["start"] != "adapted" or cell["adapt_step"] == max(one["adapt_step"] for one in cells):
            groups.setdefault((cell["size"], cell["start"]), []).append(cell)
    rows = [
        f"| {size} | {start} | {len(own)} | " + " | ".join(_mean(own, k) for k in MEASURED) + " |"
        for (size, start), own in sorted(groups.items())
    ]
    for name, scores in measured["baselines"].get(str(LABELS), {}).items():
        rows.append(f"| {name} | | 1 | " + " | ".join(_interval(scores[k]) for k in MEASURES) + " |")
    return [
        f"As the paper's Table 3, on star with {LABELS:,} labels and windows of 128 tokens; means over seeds, and 95 % "
        "intervals over test cases. The baselines see the same labels.",
        "\n".join(["| model | start | seeds | top-1 | top-3 | top-5 | loss |", "|---|---|---|---|---|---|---|", *rows]),
    ]


def _mean(own: Sequence[dict[str, Any]], name: str) -> str:
    value, low, high = (sum(cell[name + end] for cell in own) / len(own) for end in ("", "_low", "_high"))
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _interval(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _pictures() -> list[str]:
    return [
        "![Figure 3a: loss against operations](scaling-3a.png) ![Figure 3b: loss against tokens](scaling-3b.png)",
        "![Figure 3c: loss against language-model loss](scaling-3c.png) ![Figure 8b: top-1](scaling-8b.png)",
        "![Figure 9b: validation loss by step](scaling-9b.png) ![Loss against labels](scaling-labels.png)",
    ]


def _foretold_table(compared: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for quantity in sorted({one["quantity"] for one in compared}):
        own = [one for one in compared if one["quantity"] == quantity]
        off = [abs(one["value"] / one["measured"] - 1) for one in own]
        held = sum(one["low"] <= one["measured"] <= one["high"] for one in own)
        last = next(one for one in own if one["cell"].endswith(f"736_{LABELS}-labels_seed-0"))
        rows.append(
            f"| {quantity} | {last['value']:.3f} ({last['low']:.3f} to {last['high']:.3f}) | {last['measured']:.3f} | "
            f"{sum(off) / len(off):.1%} | {max(off):.1%} | {held} of {len(own)} |"
        )
    return [
        "## Foretold",
        "What laws of the three smaller sizes said of nano-1.9m, committed before it was trained "
        f"([scaling.foretold.json](scaling.foretold.json)); at its end with {LABELS:,} labels, and over all cells.",
        "\n".join(
            [
                "| of | foretold, at the end | measured | mean error, all cells | greatest | inside the interval |",
                "|---|---|---|---|---|---|",
                *rows,
            ]
        ),
    ]


def _laws(laws: Sequence[dict[str, Any]]) -> list[str]:
    held = [law for law in laws if not law["refused"]]
    shown = [
        f"| {law['law']} | {law['quantity']}, {law['where']} | {law['r2']:.3f} | {_off(law)} | {law['says']} |"
        for law in held
    ]
    rejected = [
        f"| {law['law']} | {law['quantity']}, {law['where']} | {_off(law)} | {law['refused']} |"
        for law in laws
        if law["refused"]
    ]
    return [
        "## Laws",
        f"{len(held)} of {len(laws)} hold. Off: mean relative error on held-out points, those of the last "
        "checkpoints or of the most labels, when fitted to the others.",
        "\n".join(["| law | of | R² | off | says |", "|---|---|---|---|---|", *shown]),
        "Those that do not:",
        "\n".join(["| law | of | off | why not |", "|---|---|---|---|", *rejected]),
    ]


def _off(law: dict[str, Any]) -> str:
    return "" if law["foretold"] is None else f"{law['foretold']:.1%}"


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
            f"- {law['law']}, {law['quantity']}, {law['where']} ({law['points']} points): {law['says']}"
            for law in corpora["laws"]
        ),
        *(
            f"- {worth.special} over {worth.general}: "
            + ", ".join(
                f"{size:,.0f} parameters {_times(ratio)}" for size, ratio in sorted(worth.ratio.by_size.items())
            )
            for worth in corpora["worth"]
            if worth.ratio.by_size
        ),
    ]


def _times(ratio: Ratio) -> str:
    return f"{'at least ' if ratio.at_least else ''}{ratio.value:.1f} times"


def foretold(run: Path, size: str) -> dict[str, Any]:
    """What the laws of the other sizes say of each cell of a size that starts from an adapted model."""
    rows = results.read(run)
    if any(row["size"] == size for row in rows):
        raise SystemExit(f"{run} has cells of {size} already: what is measured cannot be foretold any more")
    outlook, made = Outlook(rows), study.read(STUDY)
    cells = [cell for cell in study.cells(made) if (cell.size, cell.start, cell.seed) == (size, "adapted", 0)]
    return {
        "size": size,
        "from": sorted({row["size"] for row in outlook.rows}),
        "laws": {
            quantity: {"law": law.fit.law.formula, "refused": law.refused, "off_on_the_largest": law.foretold}
            for quantity, law in outlook.laws.items()
        },
        "cells": {cell.name: _cell(outlook, made, cell) for cell in cells},
    }


def _cell(outlook: Outlook, made: study.Study, cell: Cell) -> dict[str, Any]:
    parameters = flops.parameter_count(study.architecture_of(cell.size), embeddings=False)
    point = Point(parameters, made.tokens(cell.size, cell.step), cell.labels)
    return {name: value._asdict() for name, value in outlook.at(point).items()}


if __name__ == "__main__":
    main()
