"""The results of a study: one Parquet file with a row for each measured cell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jaxtempl import files
from jaxtempl.errors import UsageError, UserError
from jaxtempl.scaling.columns import COLUMNS, FORMAT, RENAMED, SCHEMA, TOP_K, ResultRow
from jaxtempl.scaling.jobs import Jobs
from jaxtempl.scaling.study import Cell, architecture_of
from jaxtempl.specs import flops

FILE = "results.parquet"


def collect(jobs: Jobs, cells: Sequence[Cell]) -> int:
    """Write the rows of all measured cells atomically, and return their number."""
    rows = [_row(jobs, cell) for cell in cells if jobs.cell(cell).is_done]
    write(jobs.out, rows)
    return len(rows)


def write(folder: Path, rows: Sequence[ResultRow]) -> None:
    """Write rows as the results of a study's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic_file(folder / FILE) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), temporary)


def read(folder: Path) -> list[ResultRow]:
    """Read the rows of a study's folder; rows of format 1 get the current column names.

    Raises:
        UserError: The folder has no results, results of a newer format, or results that lack columns.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; create it with bin/scaling run --study=FILE.yaml --out={folder}")
    table = pq.read_table(path)
    version = int((table.schema.metadata or {}).get(b"format", b"1"))
    if version > FORMAT:
        raise UserError(f"{path} has format {version}; this release reads up to {FORMAT}: update jaxtempl")
    table = table.rename_columns([RENAMED.get(name, name) for name in table.column_names])
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; run bin/scaling run again to rewrite it")
    return table.select(list(COLUMNS)).to_pylist()


def read_all(folders: Sequence[str]) -> list[ResultRow]:
    """Read the rows of several studies.

    Raises:
        UsageError: No folder is named.
        UserError: A folder has no results.
    """
    if not folders:
        raise UsageError("no study is named; name its folder with --runs=DIR")
    return [row for folder in folders for row in read(Path(folder))]


def _row(jobs: Jobs, cell: Cell) -> ResultRow:
    study, a = jobs.study, architecture_of(cell.size)
    tokens = study.tokens(cell.size, cell.step)
    return {
        **dict.fromkeys(COLUMNS),
        "study": study.name,
        "cell": cell.name,
        "variant": cell.variant,
        "family": a.family,
        "size": cell.size,
        "seed": cell.seed,
        "parameters": flops.parameter_count(a),
        "parameters_body": flops.parameter_count(a, embeddings=False),
        "start": cell.start,
        "corpus": cell.corpus,
        "adapt_step": cell.step,
        "adapt_steps": study.steps,
        "finished": True,
        "tokens": tokens,
        "flops_all": flops.six_nd(a, float(tokens), embeddings=True),
        "flops_body": flops.six_nd(a, float(tokens), embeddings=False),
        "flops_exact": jobs.adapt_operations(cell.size, cell.step),
        **_base_columns(jobs, cell),
        **_adaptation_columns(jobs, cell),
        **_language_columns(jobs, cell),
        **_finetuning_columns(jobs, cell),
    }


def _base_columns(jobs: Jobs, cell: Cell) -> ResultRow:
    base = jobs.study.base
    if not base or cell.start == "random":
        return {}
    batch_size = int(base.adapt.get("batch_size", jobs.study.batch_size))
    return {"base_tokens": int(base.adapt["steps"]) * batch_size * jobs.study.length(cell.size)}


def _adaptation_columns(jobs: Jobs, cell: Cell) -> ResultRow:
    if cell.start != "adapted":
        return {}
    shares, run = jobs.study.corpora[cell.corpus], jobs.adapted(cell.size, cell.corpus)
    counts = [files.read_json(jobs.dataset(name, cell.size) / "manifest.json")["counts"] for name in shares]
    last = run / "checkpoints" / str(jobs.study.steps) / "manifest.json"
    return {
        "domain_weight": 1 - shares.get(jobs.study.general, 0.0) / sum(shares.values()),
        "unique_tokens": sum(count["tokens"]["train"] for count in counts),
        "finished": last.exists(),
        "train_loss": _train_loss(*jobs.model(cell)),
        "alignment": files.read_json(jobs.alignment(cell))["alignment"],
    }


def _train_loss(run: Path, step: int) -> float | None:
    lines = files.read_lines(run / "metrics.jsonl")
    return next((line["loss"] for line in lines if line.get("step") == step and "loss" in line), None)


def _language_columns(jobs: Jobs, cell: Cell) -> ResultRow:
    if cell.start == "random":
        return {}
    domain, general = (_report(jobs.language(cell) / name) for name in ("domain", "general"))
    columns: ResultRow = {}
    if domain:
        columns["domain_loss"] = domain["metrics"]["loss"]["value"]
        columns |= _zero_shot_columns(domain)
    if general:
        columns["general_loss"] = general["metrics"]["loss"]["value"]
    return columns


def _zero_shot_columns(report: dict[str, Any]) -> ResultRow:
    scores = report.get("zero_shot") or report.get("exam")  # `exam` in reports of format 1
    if not scores:
        return {}
    return {
        "zero_shot_top1": scores["gained"]["top1"]["value"],
        "zero_shot_loss": scores["gained"]["cross_entropy"]["value"],
        "zero_shot_likeliest_top1": scores["likeliest"]["top1"]["value"],
    }


def _report(folder: Path) -> dict[str, Any] | None:
    path = folder / "report.json"
    return files.read_json(path) if path.exists() else None


def _finetuning_columns(jobs: Jobs, cell: Cell) -> ResultRow:
    folder = jobs.folder(cell)
    report = files.read_json(folder / "report" / "report.json")
    manifest = files.read_json(folder / "run" / "manifest.json")
    training = sum(line.get("seconds", 0.0) for line in files.read_lines(folder / "run" / "metrics.jsonl"))
    columns: ResultRow = {
        "labels": manifest["labels"] or _all_labels(jobs, cell),
        "epochs": float(jobs.flags("finetune", cell.size, cell.finetune).get("epochs", 1.0)),
        "contexts": report["counts"]["contexts"],
        "seconds": training + sum(report["seconds"].values()),
    }
    for name, metric in (*((name, name) for name in TOP_K), ("loss", "cross_entropy")):
        interval = report["metrics"][metric]
        columns |= {name: interval["value"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
    return columns


def _all_labels(jobs: Jobs, cell: Cell) -> int:
    counts = files.read_json(jobs.dataset(jobs.study.task, cell.size) / "manifest.json")["counts"]
    return int(counts["labels"]["train"])
