"""The contexts of a dataset with a run's slots, and the logits of the run and of the baselines on them.

Dims: S slots.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxtempl.data.examples import LabelledContexts, slots_by_id
from jaxtempl.data.sampling import nested_subset
from jaxtempl.evaluation import baselines
from jaxtempl.evaluation.predict import Predictor
from jaxtempl.evaluation.subject import Subject, note

SplitLogits = Sequence[Float[np.ndarray, "_ S"]]  # of several splits of N contexts each; N differs


def contexts(subject: Subject, split: str) -> LabelledContexts:
    """Return the labelled contexts of a split with the run's slots."""
    return LabelledContexts.read(subject.dataset, split, subject.run.window).relabel(slots_by_id(subject.run.templates))


def run_logits(subject: Subject, parts: Sequence[LabelledContexts]) -> SplitLogits:
    """Return the logits of the run's checkpoint."""
    predictor = Predictor(subject.run, subject.step)
    return [predictor.all(part, subject.config.batch_size, subject.progress) for part in parts]


def trained_on(subject: Subject) -> Int[np.ndarray, " labels"]:
    """Return the indices of the training labels that the run was trained on."""
    total, facts = len(subject.dataset.labels("train").slot), subject.run.manifest
    return nested_subset(total, facts["labels"] or None, facts["seed"])


def baseline_logits(subject: Subject, parts: Sequence[LabelledContexts]) -> dict[str, SplitLogits]:
    """Return the logits of baselines fitted on the labels that the run was trained on."""
    if not subject.is_trained_on:
        note(
            f"{subject.run.folder} was trained on another dataset; "
            "the baselines are fitted on as many labels of this one"
        )
    stored = LabelledContexts.read(subject.dataset, "train", subject.run.window).take(trained_on(subject))
    training = stored.relabel(slots_by_id(subject.run.templates)).known()
    fitted = baselines.fit(training, subject.run.outputs, subject.config.seed, subject.progress)
    return {name: [scorer(part) for part in parts] for name, scorer in fitted.items()}
