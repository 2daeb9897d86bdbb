"""`evaluate`: measure a run on a split of a dataset, and write report.json, predictions.jsonl and a page.

A finetune run is measured as a template classifier. An adapt run is measured by its loss on whole held-out cases, or on
held-out rows of other text, and by zero-shot scoring.
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtempl import files
from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UsageError, UserError
from jaxtempl.evaluation import lm_loss, metrics, page, zero_shot
from jaxtempl.evaluation.classifier import evaluate_classifier
from jaxtempl.evaluation.comparison import check_is_classifier
from jaxtempl.evaluation.metrics import Bootstrap
from jaxtempl.evaluation.paired import PairedDifference
from jaxtempl.evaluation.subject import PAGE, PREDICTIONS, REPORT, Subject
from jaxtempl.evaluation.token_losses import TokenLosses
from jaxtempl.runs.provenance import provenance
from jaxtempl.runs.run import resolve
from jaxtempl.specs.interval import Interval

FORMAT = 2  # of report.json; in format 1 zero-shot scores have another key, `exam`
ZERO_SHOT_METRICS = ("top1", "top3", "top5", "cross_entropy")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a run, write the folder of its report whole or not at all, and return the content of report.json.

    Raises:
        UserError: there is no such run or dataset, or the split has nothing to measure on.
    """
    if not config.run:
        raise UsageError("which run? pass --run=RUN, RUN@STEP or RUN@best")
    run, step = resolve(config.run)
    dataset = Dataset(run.dataset_folder(config.data, "an evaluation needs its held-out cases"))
    subject = Subject(config, run, step, dataset, sys.stderr.isatty(), {})
    if config.compare:
        check_is_classifier(run)
    measure = evaluate_classifier if run.phase == "finetune" else _evaluate_language_model
    out = Path(config.out or run.folder / f"evaluate-{config.split}")
    _refuse_other_folder(out)
    with files.atomic_folder(out, replace=True) as folder:
        report = {**_head(subject), **measure(subject, folder), "out": str(out), "seconds": subject.seconds}
        report = _to_json(report)
        files.write_json(folder / REPORT, report)
        page.write(report, list(run.metrics()), folder / PAGE)
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
            "trained_on": subject.is_trained_on,
        },
        "provenance": provenance(),
    }


def _to_json(value: Any) -> Any:
    """Return a value as JSON has it: an interval or a paired difference as an object, NaN as null."""
    if isinstance(value, Interval | PairedDifference):
        return _to_json(value._asdict())
    if isinstance(value, Mapping):
        return {key: _to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _evaluate_language_model(subject: Subject, _: Path) -> dict[str, Any]:
    """Return the held-out loss of an adapt run, and its zero-shot scores where the config asks for them."""
    if subject.config.zero_shot:
        zero_shot.check_family(subject.run)
    losses = TokenLosses(subject.run, subject.step, subject.config.batch_size)
    with subject.timed("run"):
        unit, sums = _held_out_sums(subject, losses)
    counts = {unit: len(sums.loss), "tokens": int(sums.tokens.sum()), "predicted": int(sums.predicted.sum())}
    intervals = metrics.language_model(*sums, seed=subject.config.seed)
    if subject.run.architecture.family == "bert":
        del intervals["bits_a_byte"]  # the losses of masked tokens are no code length of the text
    measured = {"counts": {**counts, "bytes": int(sums.size.sum())}, "metrics": intervals}
    return {**measured, "zero_shot": _zero_shot(subject, losses)} if subject.config.zero_shot else measured


def _held_out_sums(subject: Subject, losses: TokenLosses) -> tuple[str, lm_loss.LossSums]:
    """Return the sums of the split's cases, or of packed rows where a dataset has other text alone (`--documents`)."""
    dataset, split = subject.dataset, subject.config.split
    cases = dataset.cases(split)
    if len(cases):
        return "cases", lm_loss.measure_cases(losses, cases, subject.progress)
    rows = dataset.rows(subject.run.tokenizer, split)
    if not len(rows) or split == "train":
        raise UserError(f"{dataset.folder} has no {split} cases; choose another --split")
    counts = dataset.manifest["counts"]
    bytes_per_token = counts["text_bytes"][split] / counts["tokens"][split]
    return "rows", lm_loss.measure_rows(losses, rows, bytes_per_token, subject.progress)


def _zero_shot(subject: Subject, losses: TokenLosses) -> dict[str, Any]:
    config = subject.config
    with subject.timed("zero_shot"):
        answers = zero_shot.score_templates(
            losses, subject.dataset, config.split, config.zero_shot, config.seed, subject.progress
        )
    bootstrap, gained = Bootstrap(answers.case, config.seed), answers.scores - answers.before[None]
    measured = {
        name: {key: value for key, value in intervals.items() if key in ZERO_SHOT_METRICS}
        for name, scores in (("likeliest", answers.scores), ("gained", gained))
        for intervals in [metrics.classification(scores, answers.right, bootstrap, 1.0)]
    }
    return {"contexts": len(answers.right), "texts": answers.scores.shape[1], **measured}
