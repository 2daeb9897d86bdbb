"""The laptop study: what its laws foretold of the size that was not trained yet, what it measured, and its pictures.

bin/scaling run --study=configs/studies/laptop.yaml --data=DATA --sizes=nano-0.6m,nano-0.9m,nano-1.3m,bert-tiny
.venv/bin/python -m bench.scaling --foretell=nano-1.9m    # writes docs/benchmarks/scaling.foretold.json; commit it
bin/scaling run --study=configs/studies/laptop.yaml --data=DATA
.venv/bin/python -m bench.scaling                         # writes docs/benchmarks/scaling.{json,md} and pictures
"""

import argparse
from pathlib import Path
from typing import Any

from bench import common
from jaxtempl import files, flops
from jaxtempl.config import CONFIGS
from jaxtempl.scaling import results, study
from jaxtempl.scaling.laws.outlook import Outlook, Point
from jaxtempl.scaling.study import Cell

RUN = Path("runs/scaling/laptop")
STUDY = CONFIGS / "studies" / "laptop.yaml"
FORETOLD = common.RESULTS / "scaling.foretold.json"


def main() -> None:
    """Foretells, or writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=RUN, help="folder of the study")
    parser.add_argument("--foretell", metavar="SIZE", help="one that the study's folder has no cells of")
    asked = parser.parse_args()
    if asked.foretell:
        files.write_json(FORETOLD, foretold(asked.run, asked.foretell))


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
    parameters = flops.parameters(study.architecture_of(cell.size), embeddings=False)
    point = Point(parameters, made.tokens(cell.size, cell.step), cell.labels)
    return {name: value._asdict() for name, value in outlook.at(point).items()}


if __name__ == "__main__":
    main()
