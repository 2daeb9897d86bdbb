"""Evaluation of a fine-tuned run as a template classifier, with the baselines on the same contexts.

Dims: N contexts, S slots.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from jaxtempl import files
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.errors import UserError
from jaxtempl.evaluation import comparison, metrics, page, paired, verdict
from jaxtempl.evaluation.metrics import Bootstrap, Logits
from jaxtempl.evaluation.scores import SplitLogits, baseline_logits, contexts, run_logits, trained_on
from jaxtempl.evaluation.subject import PREDICTIONS, Subject, note
from jaxtempl.runs.run import Run

SHOWN = 5  # templates of a prediction


def evaluate_classifier(subject: Subject, folder: Path) -> dict[str, Any]:
    """Return the metrics of the run and of the baselines, and write predictions.jsonl into `folder`."""
    test, validation = contexts(subject, subject.config.split), contexts(subject, "validation")
    if not len(test):
        raise UserError(
            f"{subject.dataset.folder} has no labelled {subject.config.split} contexts; choose another --split"
        )
    others = comparison.other_subjects(subject)
    with subject.timed("run"):
        scores = {"run": run_logits(subject, (test, validation))}
    if subject.config.baselines:
        with subject.timed("baselines"):
            scores |= baseline_logits(subject, (test, validation))
    if _is_selected_here(subject):
        note(f"{page.CHOSEN_HERE}, so these figures are optimistic")
    if subject.config.split == "validation":
        note("the temperature is fitted on these same contexts, so the calibrated figures are optimistic")
    bootstrap = Bootstrap(test.case, subject.config.seed)
    measured = {name: _measured(pair, test, validation, bootstrap) for name, pair in scores.items()}
    result = measured.pop("run")
    ranks = comparison.ranks(scores, test)
    for name, baseline in measured.items():
        baseline["difference"] = paired.compare(ranks["run"], ranks[name], bootstrap)
    chosen = comparison.strongest(scores, validation)
    _save_temperature(subject, result["temperature"], validation)
    write_predictions(folder / PREDICTIONS, scores["run"][0], test, subject.run)
    found = {
        "chosen_here": _is_selected_here(subject),
        "counts": _counts(test, validation),
        **result,
        "baselines": measured,
        "strongest": chosen,
        **comparison.compare_runs(subject, ranks, others, chosen, bootstrap),
    }
    details = _details(scores["run"][0], result["temperature"], test, subject)
    return {**found, "verdict": verdict.sentences(found), **details}


def _is_selected_here(subject: Subject) -> bool:
    """Return whether the checkpoint was selected on the labels that it is measured on, as the paper's BERT was."""
    several = len(subject.run.checkpoints.steps()) > 1
    return subject.is_trained_on and several and subject.run.manifest.get("select") == subject.config.split


def _measured(
    scores: SplitLogits, test: LabelledContexts, validation: LabelledContexts, bootstrap: Bootstrap
) -> dict[str, Any]:
    temperature = metrics.fit_temperature(scores[1], validation.slot)
    return {"temperature": temperature, "metrics": metrics.classification(scores[0], test.slot, bootstrap, temperature)}


def _save_temperature(subject: Subject, temperature: float, validation: LabelledContexts) -> None:
    """Save the temperature of this checkpoint in the run for `bin/suggest`, or report why not."""
    count = int((validation.slot >= 0).sum())
    if not count:
        note(f"{subject.dataset.folder} has no labelled validation contexts, so the temperature stays 1")
    elif not subject.is_trained_on:
        note(f"{subject.run.folder} was trained on another dataset, so the temperature fitted here is not saved in it")
    else:
        path = subject.run.folder / "calibration.json"
        steps = files.read_json(path)["steps"] if path.exists() else {}
        facts = {"temperature": temperature, "count": count, "dataset": subject.dataset.fingerprint}
        files.write_json(path, {"steps": {**steps, str(subject.step): facts}})


def _counts(test: LabelledContexts, validation: LabelledContexts) -> dict[str, int]:
    return {
        "cases": len(test.cases),
        "contexts": len(test),
        "no_class": int((test.slot < 0).sum()),
        "validation": int((validation.slot >= 0).sum()),
    }


def write_predictions(path: Path, logits: Logits, test: LabelledContexts, run: Run) -> None:
    """Write one line for each labelled context, in the dataset's order, with probabilities at temperature 1."""
    top, losses = metrics.top(logits, SHOWN), metrics.losses(logits, test.slot)
    probability = np.take_along_axis(special.softmax(logits.astype(np.float64), axis=1), top, axis=1)
    ids = [template.id for template in run.templates]
    with path.open("w", encoding="utf-8") as file:
        for i in range(len(test)):
            line = {
                "case_id": test.cases[test.case[i]].case_id,
                "message": int(test.message[i]),
                "label": test.template(i),
                "top": [ids[slot] for slot in top[i]],
                "probability": [round(float(p), 6) for p in probability[i]],
                "loss": None if np.isnan(losses[i]) else round(float(losses[i]), 6),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _details(logits: Logits, temperature: float, test: LabelledContexts, subject: Subject) -> dict[str, Any]:
    """Return the data of the page's figures: reliability, hits by template, and the most confused pairs."""
    best = logits.argmax(axis=1)
    confidence = {name: metrics.top_probability(logits, t) for name, t in (("before", 1.0), ("after", temperature))}
    curves = {name: metrics.reliability(p, best == test.slot)._asdict() for name, p in confidence.items()}
    return {
        "reliability": {name: {key: v.tolist() for key, v in curve.items()} for name, curve in curves.items()},
        "templates": _by_template(best, test, subject),
        "confused": _confused(best, test, subject.run),
    }


def _by_template(best: np.ndarray, test: LabelledContexts, subject: Subject) -> list[dict[str, Any]]:
    """Return the training count and the top-1 hits of each template that labels a context."""
    templates, is_class = subject.run.templates, test.slot >= 0
    label = test.slot[is_class]
    contexts = np.bincount(label, minlength=len(templates))
    hits = np.bincount(label[best[is_class] == label], minlength=len(templates))
    training = _training_counts(subject)
    return [
        {"id": t.id, "training": training.get(t.id, 0), "contexts": int(contexts[t.slot]), "hits": int(hits[t.slot])}
        for t in templates
        if contexts[t.slot]
    ]


def _training_counts(subject: Subject) -> dict[str, int]:
    counts = np.bincount(subject.dataset.labels("train").slot[trained_on(subject)], minlength=1)
    return {t.id: int(counts[t.slot]) for t in subject.dataset.templates if t.slot < len(counts)}


def _confused(best: np.ndarray, test: LabelledContexts, run: Run, limit: int = 20) -> list[dict[str, Any]]:
    """Return the most frequent pairs of a label and a wrong first suggestion."""
    wrong = (test.slot >= 0) & (best != test.slot)
    pairs, counts = np.unique(np.stack([test.slot[wrong], best[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    ids = [template.id for template in run.templates]
    return [{"label": ids[pairs[i, 0]], "suggested": ids[pairs[i, 1]], "count": int(counts[i])} for i in order]
