"""Fits of a law to anyone's table: a file or columns, checked row by row.

Dims: N points.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from jaxtempl.errors import UserError
from jaxtempl.scaling.laws import goodness_of_fit
from jaxtempl.scaling.laws.fitting import Observations
from jaxtempl.scaling.laws.forms import Law
from jaxtempl.scaling.laws.goodness_of_fit import LawAssessment
from jaxtempl.scaling.laws.names import POWER, law_of

RUN = "run"  # column that groups the points if the table has it
CONDITION = re.compile(r"(?P<column>.+?)(?P<operator>>=|<=|=|>|<)(?P<value>[^<>=]+)")
COMPARISONS = {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal, "=": np.equal}

Table = Path | str | Mapping[str, Any]  # a file, or columns by name


class TableFit(NamedTuple):
    """A law fitted to a table.

    Attributes:
        assessment: Fit with the verdict on it.
        columns: Columns of the variables, in the law's order.
        quantity: Column that the law predicts.
        group: Column of the runs; empty if each point is a run.
        holdout: Condition of the held-out points; empty for the largest values of each variable.
    """

    assessment: LawAssessment
    columns: tuple[str, ...]
    quantity: str
    group: str
    holdout: str


def fit(
    table: Table,
    law: str,
    x: Sequence[str] = (),
    y: str = "loss",
    group: str = "",
    holdout: str = "",
    delta: float | None = None,
    seed: int = 0,
) -> TableFit:
    """Fit a law to a table and assess it.

    Args:
        table: CSV or Parquet file, or columns by name.
        law: Name of the law (`bin/scaling laws` lists them).
        x: Columns of the law's variables, in its order (default: the variables' names, with underscores).
        y: Column that the law predicts, positive.
        group: Column of the runs, whose points may share an error (default: `run` if there is one).
        holdout: Condition of the points that are predicted from the others, such as `tokens>1e9` (default: the largest
            values of each variable, in turn).
        delta: Threshold of the Huber loss (default: see `fitting`).
        seed: Seed of starts and resamples.

    Raises:
        UserError: The law is unknown, a column is missing, a value is not a positive number, or the points are too few.
    """
    form = law_of(law, x[0] if law == POWER and x else "tokens")
    columns = tuple(x) or tuple(name.replace(" ", "_") for name in form.variables)
    if len(columns) != len(form.variables):
        raise UserError(
            f"--x names {len(columns)} columns; {form.name} needs {len(form.variables)}: {', '.join(form.variables)}"
        )
    data = _read(table)
    group = group or (RUN if RUN in data.column_names else "")
    points = _observations(form, data, columns, y, group)
    reason = goodness_of_fit.shortage(form, points)
    if reason:
        raise UserError(reason)
    held_out = _held_out(data, holdout) if holdout else None
    assessment = goodness_of_fit.assess(form, points, seed, held_out, delta=delta)
    assert assessment
    return TableFit(assessment, columns, y, group, holdout)


def _read(table: Table) -> pa.Table:
    if isinstance(table, Mapping):
        return pa.table({name: list(values) for name, values in table.items()})
    path = Path(table)
    try:
        return pq.read_table(path) if path.suffix == ".parquet" else pc.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; pass a CSV or Parquet file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); pass a CSV or Parquet file") from None


def _observations(law: Law, data: pa.Table, columns: Sequence[str], y: str, group: str) -> Observations:
    values = [_positive(data, name) for name in columns]
    quantity = _positive(data, y)
    if law.of_share and quantity.max() > 1:
        raise UserError(
            f"{y} is {quantity.max():g} in row {int(quantity.argmax()) + 1}; {law.name} needs a share of at most 1"
        )
    runs = [str(name) for name in _column(data, group).to_pylist()] if group else list(range(data.num_rows))
    return Observations(np.stack(values, axis=1), quantity, np.unique(runs, return_inverse=True)[1].astype(int))


def _column(data: pa.Table, name: str) -> Any:
    if name not in data.column_names:
        raise UserError(f"the table has no column {name!r}; its columns are {', '.join(data.column_names)}")
    return data.column(name)


def _numbers(data: pa.Table, name: str) -> Float[np.ndarray, " N"]:
    try:
        return np.array(_column(data, name).to_pylist(), float)
    except (TypeError, ValueError):
        raise UserError(f"column {name!r} is not numeric; a law needs numbers") from None


def _positive(data: pa.Table, name: str) -> Float[np.ndarray, " N"]:
    values = _numbers(data, name)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        more = f" and in {len(bad) - 1} other rows" if len(bad) > 1 else ""
        raise UserError(
            f"{name} is {values[bad[0]]:g} in row {bad[0] + 1}{more}; a law needs positive numbers: remove these rows"
        )
    return values


def _held_out(data: pa.Table, condition: str) -> Bool[np.ndarray, " N"]:
    parsed = CONDITION.fullmatch(condition)
    if not parsed or not _is_number(parsed["value"]):
        raise UserError(f"--holdout={condition!r} is no condition; pass one such as --holdout='tokens>1e9'")
    value = float(parsed["value"])
    chosen = COMPARISONS[parsed["operator"]](_numbers(data, parsed["column"].strip()), value)
    if chosen.all() or not chosen.any():
        raise UserError(
            f"--holdout={condition!r} chooses {int(chosen.sum())} of {len(chosen)} rows; choose some of them"
        )
    return chosen


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
