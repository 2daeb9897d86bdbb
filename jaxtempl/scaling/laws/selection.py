"""Selections of a study's results: which rows are comparable, and which points a law is fitted to.

Dims: N points, K variables.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxtempl.scaling.columns import ResultRow
from jaxtempl.scaling.laws.fitting import Observations
from jaxtempl.scaling.laws.forms import Law

VARIABLE_COLUMNS = {
    "parameters": "parameters_body",
    "tokens": "tokens",
    "operations": "flops_body",
    "labels": "labels",
    "unique tokens": "unique_tokens",
    "domain share": "domain_weight",
}
MISSED = {f"missed top-{k}": f"top{k}" for k in (1, 3, 5)}  # error rates, which fall like a loss
OF_LANGUAGE_MODEL = ("domain_loss", "general_loss", "zero_shot_top1", "zero_shot_loss")  # equal in a checkpoint's cells
MIN_SHARE = 1e-4  # replaces 0, which has no logarithm


def study_rows(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Return the rows of the study itself and of causal language models, without ablations and BERT."""
    return [row for row in rows if not row["variant"] and row["family"] == "gpt_neox"]


def comparable(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Return the rows of the seeds with the most cells: a seed that covers part of a curve would bend it."""
    kept = study_rows(rows)
    counts = Counter(row["seed"] for row in kept)
    maximum = max(counts.values(), default=0)
    return [row for row in kept if counts[row["seed"]] == maximum]


def sizes(rows: Iterable[ResultRow]) -> list[str]:
    """Return the sizes in the rows, by family, smallest first."""
    return list({row["size"]: None for row in sorted(rows, key=lambda row: (row["family"], row["parameters"]))})


def seed_scatter(rows: Sequence[ResultRow], quantity: str) -> float:
    """Return the standard deviation of a log quantity between seeds of a cell; 0 if no cell has several seeds."""
    cells: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("size", "start", "corpus", "adapt_step", "labels", "epochs"))
        cells.setdefault(key, []).append(np.log(measured(row, quantity) or np.nan))
    several = [values for values in cells.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum(np.var(values) * len(values) for values in several)
    return float(np.sqrt(squares / freedom)) if freedom else 0.0


def main_corpus(rows: Sequence[ResultRow]) -> str:
    """Return the corpus that most cells were adapted to."""
    corpora = [row["corpus"] for row in rows if row["start"] == "adapted"]
    return max(sorted(set(corpora)), key=corpora.count, default="")


def main_labels(rows: Sequence[ResultRow]) -> int:
    """Return the number of labels that most cells have; figures against tokens use it."""
    labels = [row["labels"] for row in rows]
    return max(sorted(set(labels)), key=labels.count, default=0)


def measured(row: ResultRow, quantity: str) -> float | None:
    """Return a quantity of a row: a column, or the share that top-k misses."""
    if quantity in MISSED:
        return 1 - row[MISSED[quantity]]
    return row[quantity]


def observations(law: Law, rows: Sequence[ResultRow], quantity: str) -> Observations:
    """Return the points for a law, grouped by run: adapted models whose quantity is measured and positive."""
    if quantity in OF_LANGUAGE_MODEL:
        rows = list({(row["size"], row["corpus"], row["adapt_step"]): row for row in rows}.values())
    kept = [row for row in rows if row["start"] == "adapted" and measured(row, quantity)]
    x = [[variable(row, name) for name in law.variables] for row in kept]
    y = [measured(row, quantity) for row in kept]
    runs = {key: i for i, key in enumerate(dict.fromkeys(map(_run, kept)))}
    group = np.array([runs[_run(row)] for row in kept], int)
    return Observations(np.array(x, float).reshape(len(kept), len(law.variables)), np.array(y, float), group)


def _run(row: ResultRow) -> tuple[str, str]:
    """Return the adaptation that a cell belongs to; its checkpoints share an offset."""
    return row["size"], row["corpus"]


def variable(row: ResultRow, name: str) -> float:
    """Return the value of a law's variable in a row."""
    if name == "general share":
        return max(1 - row["domain_weight"], MIN_SHARE)
    value = float(row[VARIABLE_COLUMNS[name]])
    return max(value, MIN_SHARE) if name == "domain share" else value


def curves(rows: Sequence[ResultRow], labels: int) -> dict[tuple[str, str], list[ResultRow]]:
    """Return the curves against tokens by size and corpus.

    Each curve begins at the base and contains all seeds at one number of labels.
    """
    kept = [row for row in rows if row["labels"] == labels and row["start"] != "random"]
    adapted: dict[tuple[str, str], list[ResultRow]] = {}
    for row in kept:
        if row["start"] == "adapted":
            adapted.setdefault((row["size"], row["corpus"]), []).append(row)
    return {
        (size, corpus): sorted([*_bases(kept, size), *rows], key=lambda row: row["tokens"])
        for (size, corpus), rows in adapted.items()
    }


def _bases(rows: Sequence[ResultRow], size: str) -> list[ResultRow]:
    return [row for row in rows if row["size"] == size and row["start"] == "base"]
