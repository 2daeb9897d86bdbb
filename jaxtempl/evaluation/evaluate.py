"""A run on a split of a dataset: report.json, predictions.jsonl and a page.

A finetune run is measured as a classifier of templates; an adapt run by its loss on whole held-out cases, or on
held-out rows of other text, and by zero-shot scoring.
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from jaxtempl import files
from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UsageError, UserError
from jaxtempl.evaluation import lm_loss, metrics, page, zero_shot
from jaxtempl.evaluation.classifier import evaluate_classifier
from jaxtempl.evaluation.metrics import Bootstrap
from jaxtempl.evaluation.subject import PAGE, PREDICTIONS, REPORT, Subject
from jaxtempl.runs.provenance import provenance
from jaxtempl.runs.run import resolve
from jaxtempl.specs.interval import Interval

FORMAT = 2  # of report.json: zero-shot scores were under `exam` in 1
ZERO_SHOT_METRICS = ("top1", "top3", "top5", "cross_entropy")  # of zero-shot scoring


def evaluate(asked: EvaluateConfig) -> dict[str, Any]:
    """Measures a run, writes the folder of the report whole or not at all, and returns what report.json says.

    Raises:
        UserError: no such run or dataset, or the split has nothing to measure on.
    """
    if not asked.run:
        raise UsageError("which run? pass --run=RUN, RUN@STEP or RUN@best")
    evaluated, step = resolve(asked.run)
    subject = Subject(asked, evaluated, step, Dataset(asked.data), sys.stderr.isatty(), {})
    measure = evaluate_classifier if evaluated.phase == "finetune" else _adapt
    out = Path(asked.out or evaluated.folder / f"evaluate-{asked.split}")
    _refuse_other_folder(out)
    with files.atomic_folder(out, replace=True) as folder:
        report = {**_head(subject), **measure(subject, folder), "out": str(out), "seconds": subject.seconds}
        report = _plain(report)
        files.write_json(folder / REPORT, report)
        page.write(report, list(evaluated.metrics()), folder / PAGE)
    return report


def _refuse_other_folder(out: Path) -> None:
    if not out.exists():
        return
    others = {path.name for path in out.iterdir()} - {REPORT, PREDICTIONS, PAGE}
    if others or files.kind(out / REPORT) != "evaluation":
        raise UserError(f"{out} exists and is no report of bin/evaluate alone; name another folder with --out")


def _head(subject: Subject) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": "evaluation",
        "run": str(subject.run.folder),
        "step": subject.step,
        "phase": subject.run.phase,
        "split": subject.config.split,
        "seed": subject.config.seed,
        "dataset": {
            "folder": str(subject.dataset.folder),
            "fingerprint": subject.dataset.fingerprint,
            "trained_on": subject.of_training,
        },
        "provenance": provenance(),
    }


def _plain(value: Any) -> Any:
    """As JSON has it: a metric as an object, NaN as null."""
    if isinstance(value, Interval):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _adapt(subject: Subject, folder: Path) -> dict[str, Any]:
    """Held-out loss, and zero-shot scoring where it is requested."""
    params = subject.run.params(subject.step)
    with subject.timed("run"):
        what, sums = _held_out(subject, params)
    counts = {what: len(sums.loss), "tokens": int(sums.tokens.sum()), "predicted": int(sums.predicted.sum())}
    found = metrics.language_model(*sums, seed=subject.config.seed)
    if subject.run.architecture.family == "bert":
        del found["bits_a_byte"]  # masked tokens, told one by one, are no code of the text
    measured = {"counts": {**counts, "bytes": int(sums.size.sum())}, "metrics": found}
    return {**measured, "zero_shot": _zero_shot(subject, params)} if subject.config.zero_shot else measured


def _held_out(subject: Subject, params: PyTree) -> tuple[str, lm_loss.LossSums]:
    """Sums of the split's cases; of packed rows where all that a dataset has is other text (`prepare --documents`)."""
    dataset, split = subject.dataset, subject.config.split
    cases = dataset.cases(split)
    if len(cases):
        return "cases", lm_loss.measure_cases(subject.run, params, cases, subject.progress)
    rows = dataset.rows(subject.run.tokenizer, split)
    if not len(rows) or split == "train":
        raise UserError(f"{dataset.folder} has no {split} cases; choose another --split")
    counts = dataset.manifest["counts"]
    size = counts["text_bytes"][split] / counts["tokens"][split]
    return "rows", lm_loss.measure_rows(subject.run, params, rows, size, subject.progress)


def _zero_shot(subject: Subject, params: PyTree) -> dict[str, Any]:
    asked = subject.config
    with subject.timed("zero_shot"):
        answers = zero_shot.score_templates(
            subject.run, params, subject.dataset, asked.split, asked.zero_shot, asked.seed, subject.progress
        )
    bootstrap, gained = Bootstrap(answers.case, asked.seed), answers.scores - answers.before[None]
    measured = {
        name: {key: value for key, value in found.items() if key in ZERO_SHOT_METRICS}
        for name, scores in (("likeliest", answers.scores), ("gained", gained))
        for found in [metrics.classification(scores, answers.right, bootstrap, 1.0)]
    }
    return {"contexts": len(answers.right), "texts": answers.scores.shape[1], **measured}
