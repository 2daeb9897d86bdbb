"""A run on a split of a dataset: report.json, predictions.jsonl and a page.

A finetune run is measured as a classifier of templates, beside the baselines on the same contexts; an adapt run by
its loss on whole held-out cases, or on held-out rows of other text, and by a zero-shot exam.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, PyTree
from scipy import special

from jaxtempl import baselines, batches, config, evaluate_page, exam, examples, files, heldout, metrics
from jaxtempl.config import EvaluateConfig
from jaxtempl.contexts import Contexts
from jaxtempl.dataset import Dataset
from jaxtempl.errors import UsageError, UserError
from jaxtempl.examples import Examples
from jaxtempl.forward import Forward
from jaxtempl.metrics import Bootstrap, Value
from jaxtempl.run import Run, provenance, resolve

REPORT, PREDICTIONS, PAGE = "report.json", "predictions.jsonl", "index.html"  # all that a report's folder holds
SHOWN = 5  # templates of a prediction
EXAM = ("top1", "top3", "top5", "cross_entropy")  # metrics of an exam

Logits = Float[np.ndarray, "_ S"]  # N differs between splits


def main(argv: Sequence[str]) -> None:
    """`bin/evaluate`."""
    asked = config.parse(EvaluateConfig, argv)
    print(config.dump(asked), flush=True)
    report = run(asked)
    print(table(report))
    print(f"page: {Path(report['out']) / PAGE}")


def run(asked: EvaluateConfig) -> dict[str, Any]:
    """Measures a run, writes the folder of the report whole or not at all, and returns what report.json says.

    Raises:
        UserError: no such run or dataset, or the split has nothing to measure on.
    """
    if not asked.run:
        raise UsageError("which run? pass --run=RUN, RUN@STEP or RUN@best")
    evaluated, step = resolve(asked.run)
    subject = Subject(asked, evaluated, step, Dataset(asked.data), sys.stderr.isatty(), {})
    measure = _finetune if evaluated.phase == "finetune" else _adapt
    out = Path(asked.out or evaluated.folder / f"evaluate-{asked.split}")
    _refuse_other_folder(out)
    with files.atomic_folder(out, replace=True) as folder:
        report = {**_head(subject), **measure(subject, folder), "out": str(out), "seconds": subject.seconds}
        report = _plain(report)
        files.write_json(folder / REPORT, report)
        evaluate_page.write(report, list(evaluated.metrics()), folder / PAGE)
    return report


class Subject(NamedTuple):
    """What is evaluated, on what.

    Attributes:
        config: what was asked.
        run: the run.
        step: its checkpoint.
        dataset: what it is measured on.
        progress: whether to show bars.
        seconds: of each part of the work, filled as it goes.
    """

    config: EvaluateConfig
    run: Run
    step: int
    dataset: Dataset
    progress: bool
    seconds: dict[str, float]

    @property
    def of_training(self) -> bool:
        """Whether the dataset is one that the run was trained on."""
        return self.dataset.fingerprint in self.run.manifest["datasets"].values()

    @contextlib.contextmanager
    def timed(self, part: str) -> Generator[None]:
        """Adds the seconds of a block to those of `part`."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def _refuse_other_folder(out: Path) -> None:
    if not out.exists():
        return
    others = {path.name for path in out.iterdir()} - {REPORT, PREDICTIONS, PAGE}
    if others or files.kind(out / REPORT) != "evaluation":
        raise UserError(f"{out} exists and is no report of bin/evaluate alone; name another folder with --out")


def _head(subject: Subject) -> dict[str, Any]:
    return {
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
    if isinstance(value, Value):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _adapt(subject: Subject, folder: Path) -> dict[str, Any]:
    """Held-out loss, and the exam where it is asked for."""
    params = subject.run.params(subject.step)
    with subject.timed("run"):
        what, sums = _held_out(subject, params)
    counts = {what: len(sums.loss), "tokens": int(sums.tokens.sum()), "predicted": int(sums.predicted.sum())}
    found = metrics.language_model(*sums, seed=subject.config.seed)
    if subject.run.architecture.family == "bert":
        del found["bits_a_byte"]  # masked tokens, told one by one, are no code of the text
    measured = {"counts": {**counts, "bytes": int(sums.size.sum())}, "metrics": found}
    return {**measured, "exam": _exam(subject, params)} if subject.config.exam else measured


def _held_out(subject: Subject, params: PyTree) -> tuple[str, heldout.Sums]:
    """Sums of the split's cases; of packed rows where all that a dataset has is other text (`prepare --documents`)."""
    dataset, split = subject.dataset, subject.config.split
    cases = dataset.cases(split)
    if len(cases):
        return "cases", heldout.measure(subject.run, params, cases, subject.progress)
    rows = dataset.rows(subject.run.tokenizer, split)
    if not len(rows) or split == "train":
        raise UserError(f"{dataset.folder} has no {split} cases; choose another --split")
    counts = dataset.manifest["counts"]
    size = counts["text_bytes"][split] / counts["tokens"][split]
    return "rows", heldout.measure_rows(subject.run, params, rows, size, subject.progress)


def _exam(subject: Subject, params: PyTree) -> dict[str, Any]:
    asked = subject.config
    with subject.timed("exam"):
        answers = exam.take(subject.run, params, subject.dataset, asked.split, asked.exam, asked.seed, subject.progress)
    bootstrap, gained = Bootstrap(answers.case, asked.seed), answers.scores - answers.before[None]
    measured = {
        name: {key: value for key, value in found.items() if key in EXAM}
        for name, scores in (("likeliest", answers.scores), ("gained", gained))
        for found in [metrics.classification(scores, answers.right, bootstrap, 1.0)]
    }
    return {"contexts": len(answers.right), "texts": answers.scores.shape[1], **measured}


class Part(NamedTuple):
    """One split: its labelled contexts, and what finds their windows."""

    examples: Examples
    contexts: Contexts


def _finetune(subject: Subject, folder: Path) -> dict[str, Any]:
    """Classification, beside the baselines, all of them on the same contexts."""
    test, validation = _part(subject, subject.config.split), _part(subject, "validation")
    if not len(test.examples):
        raise UserError(
            f"{subject.dataset.folder} has no labelled {subject.config.split} contexts; choose another --split"
        )
    with subject.timed("run"):
        scores = {"run": _run_scores(subject, (test, validation))}
    if subject.config.baselines:
        with subject.timed("baselines"):
            scores |= _baseline_scores(subject, (test, validation))
    if _chosen_here(subject):
        _note(f"{evaluate_page.CHOSEN_HERE}, so these figures are too good")
    if subject.config.split == "validation":
        _note("the temperature is fitted on these same contexts, so what is said after it is too good")
    bootstrap = Bootstrap(test.examples.case, subject.config.seed)
    measured = {name: _measured(pair, test.examples, validation.examples, bootstrap) for name, pair in scores.items()}
    own = measured.pop("run")
    _keep_temperature(subject, own["temperature"], validation.examples)
    _write_predictions(folder / PREDICTIONS, scores["run"][0], test.examples, subject.run)
    return {
        "chosen_here": _chosen_here(subject),
        "counts": _counts(test.examples, validation.examples),
        **own,
        "baselines": measured,
        **_details(scores["run"][0], own["temperature"], test.examples, subject),
    }


def _chosen_here(subject: Subject) -> bool:
    """Whether the checkpoint was chosen on the very labels that it is measured on, as the paper's BERT was."""
    several = len(subject.run.checkpoints.steps()) > 1
    return subject.of_training and several and subject.run.manifest.get("select") == subject.config.split


def _part(subject: Subject, split: str) -> Part:
    facts = subject.run.manifest
    contexts = Contexts(subject.dataset, split, subject.run.tokenizer, facts["length"], facts["role_tags"])
    return Part(examples.read(subject.dataset, split, examples.slots_by_id(subject.run.templates)), contexts)


def _run_scores(subject: Subject, parts: Sequence[Part]) -> list[Logits]:
    loaded = Forward(subject.run, subject.step)
    return [loaded.all(part.contexts, subject.config.batch, subject.progress) for part in parts]


def _trained_on(subject: Subject) -> Int[np.ndarray, " labels"]:
    """Which training labels of the dataset the run was trained on."""
    total, facts = len(subject.dataset.labels("train").slot), subject.run.manifest
    return batches.nested(total, min(facts["labels"], total), facts["seed"])


def _baseline_scores(subject: Subject, parts: Sequence[Part]) -> dict[str, list[Logits]]:
    """Scores of baselines that were fitted on the labels that the run was trained on."""
    if not subject.of_training:
        _note(
            f"{subject.run.folder} was trained on another dataset; the baselines are fitted on as many labels of this"
        )
    slots = examples.slots_by_id(subject.run.templates)
    training = examples.known(examples.read(subject.dataset, "train", slots, _trained_on(subject)))
    fitted = baselines.fit(training, subject.run.outputs, subject.config.seed, subject.progress)
    return {name: [scorer(part.examples) for part in parts] for name, scorer in fitted.items()}


def _measured(scores: Sequence[Logits], test: Examples, validation: Examples, bootstrap: Bootstrap) -> dict[str, Any]:
    temperature = metrics.fit_temperature(scores[1], validation.slot)
    return {"temperature": temperature, "metrics": metrics.classification(scores[0], test.slot, bootstrap, temperature)}


def _keep_temperature(subject: Subject, temperature: float, validation: Examples) -> None:
    """Leaves the temperature of this checkpoint in the run for `bin/suggest`, or says why not."""
    count = int((validation.slot >= 0).sum())
    if not count:
        _note(f"{subject.dataset.folder} has no labelled validation contexts, so the temperature stays 1")
    elif not subject.of_training:
        _note(f"{subject.run.folder} was trained on another dataset, so the temperature fitted here is not kept in it")
    else:
        path = subject.run.folder / "calibration.json"
        kept = files.read_json(path)["steps"] if path.exists() else {}
        facts = {"temperature": temperature, "count": count, "dataset": subject.dataset.fingerprint}
        files.write_json(path, {"steps": {**kept, str(subject.step): facts}})


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def _counts(test: Examples, validation: Examples) -> dict[str, int]:
    return {
        "cases": len(test.cases),
        "contexts": len(test),
        "no_class": int((test.slot < 0).sum()),
        "validation": int((validation.slot >= 0).sum()),
    }


def _write_predictions(path: Path, logits: Logits, test: Examples, evaluated: Run) -> None:
    """One labelled context a line, in the dataset's order; probabilities are the model's own, at temperature 1."""
    top, losses = metrics.top(logits, SHOWN), metrics.losses(logits, test.slot)
    probability = np.take_along_axis(special.softmax(logits.astype(np.float64), axis=1), top, axis=1)
    ids = [template.id for template in evaluated.templates]
    with path.open("w", encoding="utf-8") as file:
        for i in range(len(test)):
            line = {
                "case_id": test.cases[test.case[i]].case_id,
                "message": int(test.message[i]),
                "label": test.label(i),
                "top": [ids[slot] for slot in top[i]],
                "probability": [round(float(p), 6) for p in probability[i]],
                "loss": None if np.isnan(losses[i]) else round(float(losses[i]), 6),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _details(logits: Logits, temperature: float, test: Examples, subject: Subject) -> dict[str, Any]:
    """What the page draws: reliability before and after, hits by template, the most confused pairs."""
    best = logits.argmax(axis=1)
    sure = {name: metrics.top_probability(logits, t) for name, t in (("before", 1.0), ("after", temperature))}
    curves = {name: metrics.reliability(p, best == test.slot)._asdict() for name, p in sure.items()}
    return {
        "reliability": {name: {key: v.tolist() for key, v in curve.items()} for name, curve in curves.items()},
        "templates": _by_template(best, test, subject),
        "confused": _confused(best, test, subject.run),
    }


def _by_template(best: np.ndarray, test: Examples, subject: Subject) -> list[dict[str, Any]]:
    """Training count and top-1 hits of each template that is a label here."""
    templates, known = subject.run.templates, test.slot >= 0
    label = test.slot[known]
    contexts = np.bincount(label, minlength=len(templates))
    hits = np.bincount(label[best[known] == label], minlength=len(templates))
    training = _training_counts(subject)
    return [
        {"id": t.id, "training": training.get(t.id, 0), "contexts": int(contexts[t.slot]), "hits": int(hits[t.slot])}
        for t in templates
        if contexts[t.slot]
    ]


def _training_counts(subject: Subject) -> dict[str, int]:
    counts = np.bincount(subject.dataset.labels("train").slot[_trained_on(subject)], minlength=1)
    return {t.id: int(counts[t.slot]) for t in subject.dataset.templates if t.slot < len(counts)}


def _confused(best: np.ndarray, test: Examples, evaluated: Run, most: int = 20) -> list[dict[str, Any]]:
    """The most frequent (label, wrong suggestion) pairs."""
    wrong = (test.slot >= 0) & (best != test.slot)
    pairs, counts = np.unique(np.stack([test.slot[wrong], best[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    ids = [template.id for template in evaluated.templates]
    return [{"label": ids[pairs[i, 0]], "suggested": ids[pairs[i, 1]], "count": int(counts[i])} for i in order]


def table(report: Mapping[str, Any]) -> str:
    """The report in a few aligned lines."""
    rows = {"run": report["metrics"]} | {name: found["metrics"] for name, found in report.get("baselines", {}).items()}
    columns = [name for name in report["metrics"] if not name.startswith("calibrated")]
    lines = [f"{report['run']}@{report['step']} on {report['split']}: " + _said(report["counts"])]
    lines.append(f"{'':18}" + "".join(f"{name.replace('_', ' '):>22}" for name in columns))
    for name in (n for n in evaluate_page.NAMES if n in rows):
        lines.append(
            f"{evaluate_page.NAMES[name]:18}" + "".join(f"{_interval(rows[name][column]):>22}" for column in columns)
        )
    if "exam" in report:
        asked = report["exam"]
        for name in ("likeliest", "gained"):
            told = ", ".join(f"{key.replace('_', ' ')} {_interval(value)}" for key, value in asked[name].items())
            lines.append(f"exam of {asked['contexts']:,} contexts, {asked['texts']:,} texts, {name}: {told}")
    if "temperature" in report:
        after = report["metrics"]["calibrated_calibration_error"]
        lines.append(f"temperature {report['temperature']:.3f}: calibration error {_interval(after)}")
    return "\n".join(lines)


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items())


def _interval(value: Mapping[str, float | None]) -> str:
    numbers = [f"{v:.3f}" if v is not None else "-" for v in (value["value"], value["low"], value["high"])]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
