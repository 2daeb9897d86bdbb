"""The comparison of a run with the strongest baseline and with other runs, on the same contexts.

Dims: N contexts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtempl.data.examples import LabelledContexts
from jaxtempl.errors import UsageError
from jaxtempl.evaluation import learning_curve, metrics, paired
from jaxtempl.evaluation.metrics import TOPS, Bootstrap
from jaxtempl.evaluation.paired import Ranks
from jaxtempl.evaluation.scores import SplitLogits, baseline_logits, contexts, run_logits, trained_on
from jaxtempl.evaluation.subject import Subject
from jaxtempl.runs.run import Run, resolve


class Candidate(NamedTuple):
    """A run's number of training labels, and the ranks of `run` and of the baselines that saw the same labels."""

    labels: int
    ranks: Mapping[str, Ranks]


def other_subjects(subject: Subject) -> list[Subject]:
    """Return the runs of `--compare`, each with the dataset of the evaluation.

    Raises:
        UserError: There is no such run.
        UsageError: A run is not a classifier.
    """
    resolved = [resolve(reference) for reference in subject.config.compare]
    for run, _ in resolved:
        check_is_classifier(run)
    return [subject._replace(run=run, step=step) for run, step in resolved]


def check_is_classifier(run: Run) -> None:
    """Raise UsageError unless a run is a classifier, which `--compare` needs on both sides."""
    if run.phase != "finetune":
        raise UsageError(f"--compare: {run.folder} is an {run.phase} run; only finetune runs can be compared")


def ranks(scores: Mapping[str, SplitLogits], test: LabelledContexts) -> dict[str, Ranks]:
    """Return the rank of each context's label by the first split's logits of each classifier."""
    return {name: metrics.ranks(parts[0], test.slot) for name, parts in scores.items()}


def strongest(scores: Mapping[str, SplitLogits], validation: LabelledContexts) -> dict[str, str]:
    """Return the baseline with the most hits on the validation contexts, for each of top-1, top-3 and top-5.

    The choice does not see the test contexts, so it does not bias the comparison. In a tie, or without validation
    contexts, the more complex baseline is chosen.
    """
    names = [name for name in list(scores)[::-1] if name != "run"]
    found = {name: metrics.ranks(scores[name][1], validation.slot) for name in names}
    return {f"top{k}": max(names, key=lambda name: (found[name] < k).sum()) for k in TOPS} if names else {}


def compare_runs(
    subject: Subject,
    ours: Mapping[str, Ranks],
    others: Sequence[Subject],
    chosen: Mapping[str, str],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Return the paired difference to each other run, and the learning curve against the `chosen` baselines."""
    compared, candidates = {}, [Candidate(len(trained_on(subject)), ours)]
    for other in others:
        is_candidate = bool(chosen) and _differs_in_labels_alone(subject, other)
        candidate = _candidate(other, with_baselines=is_candidate)
        candidates += [candidate] * is_candidate
        theirs = candidate.ranks["run"]
        compared[f"{other.run.folder}@{other.step}"] = {
            "labels": candidate.labels,
            "metrics": {f"top{k}": bootstrap.mean((theirs < k).astype(float)) for k in TOPS},
            "difference": paired.compare(ours["run"], theirs, bootstrap),
        }
    return {"compared": compared, "learning_curve": _learning_curves(candidates, chosen, bootstrap)}


def _candidate(subject: Subject, with_baselines: bool) -> Candidate:
    test = contexts(subject, subject.config.split)
    with subject.timed("compared"):
        scores = {"run": run_logits(subject, (test,))}
        if with_baselines:
            scores |= baseline_logits(subject, (test,))
    return Candidate(len(trained_on(subject)), ranks(scores, test))


def _differs_in_labels_alone(one: Subject, other: Subject) -> bool:
    """Return whether two runs started from the same weights and were trained on labels of the evaluated dataset."""
    return one.is_trained_on and other.is_trained_on and _origin(one.run) == _origin(other.run)


def _origin(run: Run) -> tuple[Any, ...]:
    start = run.manifest["start"]
    return run.manifest["size"], start.get("weights_sha256", start)


def _learning_curves(
    candidates: Sequence[Candidate], chosen: Mapping[str, str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Return the learning curve of each of top-1, top-3 and top-5; none if all runs have the same number of labels."""
    labels = [candidate.labels for candidate in candidates]
    if len(set(labels)) < 2:
        return {}
    pairs = {top: [(c.ranks["run"], c.ranks[name]) for c in candidates] for top, name in chosen.items()}
    return {f"top{k}": learning_curve.fit(labels, pairs[f"top{k}"], k, bootstrap) for k in TOPS}
