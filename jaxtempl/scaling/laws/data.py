"""The results of a study -> the points of a law.

Dims: N points, K variables.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxtempl.scaling.laws.fitting import Data
from jaxtempl.scaling.laws.forms import Law

Row = dict[str, Any]  # of results.parquet

COLUMNS = {  # of the variables that laws are in
    "parameters": "parameters_body",
    "tokens": "tokens",
    "operations": "flops_body",
    "labels": "labels",
    "unique tokens": "unique_tokens",
    "domain share": "domain_weight",
}
MISSED = {f"missed top-{k}": f"top{k}" for k in (1, 3, 5)}  # what falls with more of everything, as a loss does
OF_LANGUAGE = ("domain_loss", "general_loss", "exam_top1", "exam_loss")  # the same for all cells of a checkpoint
LEAST_SHARE = 1e-4  # instead of 0, of which there is no logarithm


def own(rows: Iterable[Row]) -> list[Row]:
    """Those of the study itself, of causal language models: no ablation and no BERT."""
    return [row for row in rows if not row["variant"] and row["family"] == "gpt_neox"]


def comparable(rows: Iterable[Row]) -> list[Row]:
    """Those of the seeds that have the most cells: a seed that only some points of a curve have would bend it."""
    kept = own(rows)
    counts = Counter(row["seed"] for row in kept)
    most = max(counts.values(), default=0)
    return [row for row in kept if counts[row["seed"]] == most]


def sizes(rows: Iterable[Row]) -> list[str]:
    """Their sizes, by family, smallest first."""
    return list({row["size"]: None for row in sorted(rows, key=lambda row: (row["family"], row["parameters"]))})


def seed_scatter(rows: Sequence[Row], quantity: str) -> float:
    """Standard deviation of a quantity's logarithm between seeds of the same cell; 0 where there is one seed."""
    cells: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("size", "start", "corpus", "adapt_step", "labels", "epochs"))
        cells.setdefault(key, []).append(np.log(measured(row, quantity) or np.nan))
    several = [values for values in cells.values() if len(values) > 1]
    spare = sum(len(values) - 1 for values in several)
    squares = sum(np.var(values) * len(values) for values in several)
    return float(np.sqrt(squares / spare)) if spare else 0.0


def main_corpus(rows: Sequence[Row]) -> str:
    """The corpus that most cells were adapted to."""
    corpora = [row["corpus"] for row in rows if row["start"] == "adapted"]
    return max(sorted(set(corpora)), key=corpora.count, default="")


def main_labels(rows: Sequence[Row]) -> int:
    """The number of labels that most cells have: figures against tokens are at it."""
    labels = [row["labels"] for row in rows]
    return max(sorted(set(labels)), key=labels.count, default=0)


def measured(row: Row, quantity: str) -> float | None:
    """A quantity of a row: a column, or a share that was missed."""
    if quantity in MISSED:
        return 1 - row[MISSED[quantity]]
    return row[quantity]


def points(law: Law, rows: Sequence[Row], quantity: str) -> Data:
    """The points that a law of a quantity can be fitted to: adapted models where the quantity is known and above 0."""
    if quantity in OF_LANGUAGE:
        rows = list({(row["size"], row["corpus"], row["adapt_step"]): row for row in rows}.values())
    kept = [row for row in rows if row["start"] == "adapted" and measured(row, quantity)]
    x = [[variable(row, name) for name in law.variables] for row in kept]
    y = [measured(row, quantity) for row in kept]
    return Data(
        np.array(x, float).reshape(len(kept), len(law.variables)), np.array(y, float), np.arange(len(kept), dtype=int)
    )


def variable(row: Row, name: str) -> float:
    """A law's variable in a row."""
    if name == "general share":
        return max(1 - row["domain_weight"], LEAST_SHARE)
    value = float(row[COLUMNS[name]])
    return max(value, LEAST_SHARE) if name == "domain share" else value


def curves(rows: Sequence[Row], labels: int) -> dict[tuple[str, str], list[Row]]:
    """The curves against tokens, from the base on, by size and corpus: all seeds, at one number of labels."""
    kept = [row for row in rows if row["labels"] == labels and row["start"] != "random"]
    found: dict[tuple[str, str], list[Row]] = {}
    for row in kept:
        if row["start"] == "adapted":
            found.setdefault((row["size"], row["corpus"]), []).append(row)
    return {
        (size, corpus): sorted([*_bases(kept, size), *rows], key=lambda row: row["tokens"])
        for (size, corpus), rows in found.items()
    }


def _bases(rows: Sequence[Row], size: str) -> list[Row]:
    return [row for row in rows if row["size"] == size and row["start"] == "base"]
