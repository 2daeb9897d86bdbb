"""The amount of data that a training to plan reads, and the operations that it takes.

A dataset contributes only its number of rows, or of labels and templates. Without one, the steps of the recipe
determine the number of tokens of a language model.
"""

from typing import NamedTuple

from jaxtempl.config import mixture
from jaxtempl.config.training import AdaptConfig, FinetuneConfig
from jaxtempl.data import loader, mlm
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UserError
from jaxtempl.specs import flops
from jaxtempl.specs.architecture import Architecture, BertArchitecture
from jaxtempl.training import adapt, finetune, initialization
from jaxtempl.training.initialization import PhaseConfig


class TrainingSize(NamedTuple):
    """The amount of training data.

    Attributes:
        steps: Updates.
        length: Tokens of a row.
        source: Where both come from, in words.
        slots: Columns of a template head; None for a language model.
    """

    steps: int
    length: int
    source: str
    slots: int | None = None


def training_size(config: PhaseConfig, a: Architecture) -> TrainingSize:
    """Return the size by the dataset, or of a language model by steps if the default dataset cannot be read.

    Raises:
        UserError: The dataset cannot be read, or its rows do not fit the model.
    """
    if isinstance(config, FinetuneConfig):
        return _labelled_size(config, a)
    try:
        return _packed_size(config, a)
    except UserError:
        if config.data != AdaptConfig.data:
            raise
    source = "--steps or the recipe" if config.steps else "at most, by --max_steps"
    length = min(adapt.PAPER_LENGTH, a.positions)
    return TrainingSize(
        config.steps or config.max_steps, length, f"{source}; no dataset of this model in {config.data}"
    )


def _packed_size(config: AdaptConfig, a: Architecture) -> TrainingSize:
    datasets = [Dataset(folder) for folder, _ in mixture.parse_mixture(config.data)]
    tokenizer = initialization.identify_tokenizer(config)
    total = sum(len(dataset.rows(tokenizer, "train")) for dataset in datasets)
    steps = min(loader.steps_for_epochs(config.epochs, total, config.batch_size), config.max_steps)
    length = adapt.row_length(datasets, a.positions)
    return TrainingSize(config.steps or steps, length, f"{total:,} rows in {config.data}")


def _labelled_size(config: FinetuneConfig, a: Architecture) -> TrainingSize:
    """Return an upper bound: every context fills the window."""
    finetune.check_length(config, a)
    dataset = Dataset(config.data)
    labels = config.labels or len(dataset.labels("train").case)
    steps = config.steps or loader.steps_for_epochs(config.epochs, labels, config.batch_size)
    source = f"at most, if all of {labels:,} contexts in {config.data} fill the window"
    return TrainingSize(steps, config.length, source, len(dataset.templates))


def row_operations(a: Architecture, size: TrainingSize) -> int:
    """Return the operations of training on one row."""
    if size.slots is not None:
        return flops.per_context(a, size.length, size.slots)
    if isinstance(a, BertArchitecture):
        return flops.per_masked_row(a, size.length, mlm.masked_count(size.length))
    return size.length * flops.per_token(a, size.length)
