"""The results of a study: one Parquet file, a row a cell; its columns are told here and nowhere else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jaxtempl import files
from jaxtempl.errors import UsageError, UserError
from jaxtempl.scaling.jobs import Jobs
from jaxtempl.scaling.study import Cell, architecture_of
from jaxtempl.specs import flops

FILE = "results.parquet"
TOP = ("top1", "top3", "top5")
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "study": (pa.string(), "name of the study"),
    "cell": (pa.string(), "name of the cell, and of its folder in cells/"),
    "variant": (pa.string(), "name of the ablation; empty for the study itself"),
    "family": (pa.string(), "gpt_neox or bert"),
    "size": (pa.string(), "of configs/sizes/"),
    "seed": (pa.int64(), "of the fine-tuning"),
    "parameters": (pa.int64(), "of the language model"),
    "parameters_body": (pa.int64(), "the same without tables and head"),
    "start": (pa.string(), "adapted, base (not adapted) or random (weights that nothing was trained of)"),
    "corpus": (pa.string(), "what it was adapted to; empty where it was not"),
    "domain_weight": (pa.float64(), "share of the corpus that is not the study's general text; null where not adapted"),
    "adapt_step": (pa.int64(), "updates of the adaptation; 0 for base and random"),
    "adapt_steps": (pa.int64(), "updates that it was planned for"),
    "finished": (pa.bool_(), "whether it came to its end: a curve may be a part of one"),
    "tokens": (pa.int64(), "that the adaptation has read"),
    "unique_tokens": (pa.int64(), "tokens of the corpus's training rows; null where not adapted"),
    "base_tokens": (pa.int64(), "that the base was trained on by the study; null where it was published, or random"),
    "flops_all": (pa.float64(), "of the adaptation: 6 N D, N all parameters"),
    "flops_body": (pa.float64(), "the same, N without tables and head"),
    "flops_exact": (pa.float64(), "all matrix products, forward and backward, attention's full square among them"),
    "domain_loss": (pa.float64(), "of the language model on the task's held-out cases, nats a token; null for random"),
    "general_loss": (pa.float64(), "the same on held-out general text; null where there is none"),
    "train_loss": (pa.float64(), "of the adaptation at this step; null where not adapted"),
    "labels": (pa.int64(), "contexts fine-tuned on"),
    "epochs": (pa.float64(), "passes over them"),
    "contexts": (pa.int64(), "test contexts"),
    **{
        name + end: (pa.float64(), f"{what}{told}")
        for name, what in (
            *((t, f"share of test contexts with the label in the first {t[3]}") for t in TOP),
            ("loss", "cross-entropy on the test labels, nats"),
        )
        for end, told in (
            ("", ""),
            ("_low", ": lower end of 95 %, over cases"),
            ("_high", ": upper end of 95 %, over cases"),
        )
    },
    "exam_top1": (
        pa.float64(),
        "zero-shot: share of contexts that make the sent text likelier by more than any other; null where none",
    ),
    "exam_loss": (pa.float64(), "zero-shot: cross-entropy of the softmax over these gains, nats; null where none"),
    "exam_likeliest_top1": (
        pa.float64(),
        "zero-shot: share of contexts after which the sent text is the likeliest; null where none",
    ),
    "alignment": (pa.float64(), "share of the task's word 3-grams that the corpus has; null where not adapted"),
    "seconds": (pa.float64(), "of training and measuring the cell"),
}
SCHEMA = pa.schema([pa.field(name, kind, metadata={"about": about}) for name, (kind, about) in COLUMNS.items()])

Row = dict[str, Any]


def collect(jobs: Jobs, wanted: Sequence[Cell]) -> int:
    """Writes the rows of all cells that are measured, whole or not at all; how many there are."""
    rows = [_row(jobs, cell) for cell in wanted if jobs.cell(cell).done]
    jobs.out.mkdir(parents=True, exist_ok=True)
    with files.atomic_file(jobs.out / FILE) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary)
    return len(rows)


def read(folder: Path) -> list[Row]:
    """The rows of a study's folder.

    Raises:
        UserError: it has none, or of another format.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; bin/scaling run --study=FILE.yaml --out={folder} makes it")
    table = pq.read_table(path)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; run bin/scaling run again, which makes it anew")
    return table.select(list(COLUMNS)).to_pylist()


def read_all(folders: Sequence[str]) -> list[Row]:
    """The rows of several studies.

    Raises:
        UserError: no folder is named, or one has none.
    """
    if not folders:
        raise UsageError("name the folder of a study: --runs=DIR")
    return [row for folder in folders for row in read(Path(folder))]


def _row(jobs: Jobs, cell: Cell) -> Row:
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
        **_base(jobs, cell),
        **_adapted(jobs, cell),
        **_language(jobs, cell),
        **_measured(jobs, cell),
    }


def _base(jobs: Jobs, cell: Cell) -> Row:
    base = jobs.study.base
    if not base or cell.start == "random":
        return {}
    batch = int(base.adapt.get("batch", jobs.study.adapt["batch"]))
    return {"base_tokens": int(base.adapt["steps"]) * batch * jobs.study.length(cell.size)}


def _adapted(jobs: Jobs, cell: Cell) -> Row:
    if cell.start != "adapted":
        return {}
    shares, run = jobs.study.corpora[cell.corpus], jobs.adapted(cell.size, cell.corpus)
    counted = [files.read_json(jobs.dataset(name, cell.size) / "manifest.json")["counts"] for name in shares]
    last = run / "checkpoints" / str(jobs.study.steps) / "manifest.json"
    return {
        "domain_weight": 1 - shares.get(jobs.study.general, 0.0) / sum(shares.values()),
        "unique_tokens": sum(counts["tokens"]["train"] for counts in counted),
        "finished": last.exists(),
        "train_loss": next(
            (
                line["loss"]
                for line in files.read_lines(run / "metrics.jsonl")
                if line.get("step") == cell.step and "loss" in line
            ),
            None,
        ),
        "alignment": files.read_json(jobs.alignment(cell))["alignment"],
    }


def _language(jobs: Jobs, cell: Cell) -> Row:
    if cell.start == "random":
        return {}
    folder = jobs.language(cell)
    domain = _report(folder / "domain")
    found = {"domain_loss": domain["metrics"]["loss"]["value"]} if domain else {}
    asked = (domain or {}).get("zero_shot") or (domain or {}).get("exam")  # of a report of format 1
    if asked:
        found |= {"exam_top1": asked["gained"]["top1"]["value"], "exam_loss": asked["gained"]["cross_entropy"]["value"]}
        found |= {"exam_likeliest_top1": asked["likeliest"]["top1"]["value"]}
    general = _report(folder / "general")
    return found | ({"general_loss": general["metrics"]["loss"]["value"]} if general else {})


def _report(folder: Path) -> Row | None:
    path = folder / "report.json"
    return files.read_json(path) if path.exists() else None


def _measured(jobs: Jobs, cell: Cell) -> Row:
    folder = jobs.folder(cell)
    report, manifest = (
        files.read_json(folder / "report" / "report.json"),
        files.read_json(folder / "run" / "manifest.json"),
    )
    found: Row = {
        "labels": manifest["labels"] or _labels(jobs, cell),
        "epochs": float(_flag(jobs, cell, "epochs", 1.0)),
        "contexts": report["counts"]["contexts"],
        "seconds": sum(line.get("seconds", 0.0) for line in files.read_lines(folder / "run" / "metrics.jsonl"))
        + sum(report["seconds"].values()),
    }
    for name, measured in (*((name, name) for name in TOP), ("loss", "cross_entropy")):
        value = report["metrics"][measured]
        found |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
    return found


def _labels(jobs: Jobs, cell: Cell) -> int:
    counts = files.read_json(jobs.dataset(jobs.study.task, cell.size) / "manifest.json")["counts"]
    return int(counts["labels"]["train"])


def _flag(jobs: Jobs, cell: Cell, name: str, otherwise: Any) -> Any:
    return jobs.given("finetune", cell.size, cell.finetune).get(name, otherwise)
