"""Phase 1: further language modelling on transcripts (paper section 4.2): causal, or masked for BERT (section 4.4)."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxtempl.config import mixture
from jaxtempl.config.training import AdaptConfig
from jaxtempl.data import loader, tapt
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.loader import Batch
from jaxtempl.data.mlm import Masker
from jaxtempl.errors import UserError
from jaxtempl.models import factory
from jaxtempl.parallel import rules
from jaxtempl.parallel.mesh import MeshShape, make_mesh
from jaxtempl.runs import run
from jaxtempl.specs.architecture import BertArchitecture
from jaxtempl.training import initialization, objectives, trainer
from jaxtempl.training.initialization import Initialization
from jaxtempl.training.precision import compute_dtype
from jaxtempl.training.preemption import NEVER_PREEMPTED, PreemptionHandler

PAPER_LENGTH = 2048  # paper, Table 1: max-position-embeddings
VALIDATION_ROWS = 256  # of the first dataset: enough to resolve losses to 0.01, cheap enough for every tenth of a run


class AdaptData(NamedTuple):
    """The packed rows of a training.

    Attributes:
        sources: Training rows and weight of each dataset.
        validation: Held-out rows of the first dataset.
        length: Tokens of a row.
        fingerprints: Fingerprint of each dataset by its folder.
    """

    sources: list[tuple[Sequence[loader.Microbatch], float | None]]
    validation: Sequence[loader.Microbatch]
    length: int
    fingerprints: dict[str, str]

    @property
    def row_count(self) -> int:
        """Number of training rows."""
        return sum(len(rows) for rows, _ in self.sources)


def adapt(config: AdaptConfig, preemption: PreemptionHandler = NEVER_PREEMPTED) -> run.Run:
    """Train a language model and return its run.

    Raises:
        UserError: Data, weights or flags do not fit.
    """
    trainer.check_flags(config)
    datasets = [(Dataset(folder), weight) for folder, weight in mixture.parse_mixture(config.data)]
    init = initialization.resolve_init(config)
    data = _load_data(config, datasets, init)
    config = _resolve_config(config, data)
    trainer.check_agreement(config, init, data.fingerprints)
    return trainer.train_run(config, init, _job(config, init, data), preemption)


def _load_data(
    config: AdaptConfig, datasets: Sequence[tuple[Dataset, float | None]], init: Initialization
) -> AdaptData:
    length = row_length([dataset for dataset, _ in datasets], init.architecture.positions)
    if config.recipe == "paper" and length != PAPER_LENGTH:
        raise UserError(
            f"--recipe=paper needs rows of {PAPER_LENGTH} tokens, and --data has {length}; prepare it again with "
            f"--length={PAPER_LENGTH}"
        )
    rows_of = functools.partial(tapt.task_adaptive_rows, length=length) if config.task_adaptive else Dataset.rows
    return AdaptData(
        sources=[(rows_of(dataset, init.tokenizer, "train"), weight) for dataset, weight in datasets],
        validation=rows_of(datasets[0][0], init.tokenizer, "validation"),
        length=length,
        fingerprints={str(dataset.folder): dataset.fingerprint for dataset, _ in datasets},
    )


def row_length(datasets: Sequence[Dataset], positions: int) -> int:
    """Return the number of tokens of the datasets' rows.

    Raises:
        UserError: The lengths differ, or exceed the model's positions.
    """
    lengths = {dataset.manifest["length"] for dataset in datasets}
    if len(lengths) > 1 or max(lengths) > positions:
        raise UserError(
            f"the rows of --data are {', '.join(map(str, sorted(lengths)))} tokens long; they must be of one length, "
            f"at most the model's {positions} positions: prepare them again with one --length"
        )
    return lengths.pop()


def _resolve_config(config: AdaptConfig, data: AdaptData) -> AdaptConfig:
    """Return the config with every default that depends on the data, and print a summary."""
    steps = min(loader.steps_for_epochs(config.epochs, data.row_count, config.batch_size), config.max_steps)
    config = trainer.resolve_config(config, "adapt", steps, saves=10, length=data.length)
    trainer.print_summary(config, f"{data.row_count:,} rows of {data.length} tokens")
    return config


def _job(config: AdaptConfig, init: Initialization, data: AdaptData) -> trainer.TrainingJob:
    dtype = compute_dtype(config.precision)
    rows = loader.microbatch_rows(config.batch_size, config.gradient_accumulation_steps)
    mesh = trainer.resolve_mesh(config, init.architecture, None, rows)
    transform = Masker(init.tokenizer) if isinstance(init.architecture, BertArchitecture) else None
    return trainer.TrainingJob(
        phase="adapt",
        objective=objectives.language_modelling(
            init.architecture,
            factory.make_graphdef(init.architecture, None, dtype, config.remat),
            config.mask_documents,
        ),
        batches=loader.row_batches(
            data.sources,
            config.batch_size,
            config.gradient_accumulation_steps,
            config.seed,
            functools.partial(rules.local_rows, make_mesh(mesh)),
            transform,
        ),
        validation=_validation(data.validation, rows, mesh, transform) if len(data.validation) else None,
        mesh=mesh,
        dtype=dtype,
        templates=[],
        facts=_manifest_facts(config, data),
    )


def _validation(
    rows: Sequence[loader.Microbatch], size: int, mesh: MeshShape, transform: loader.RowTransform | None
) -> Callable[[], Iterator[Batch]]:
    """Return the first held-out rows in microbatches of `size`, the last one filled with rows of padding."""
    count = min(len(rows), VALIDATION_ROWS)
    local = rules.local_rows(make_mesh(mesh), size)

    def row(index: int) -> loader.Microbatch:
        return rows[index] if transform is None else transform(rows[index], np.random.default_rng(index))

    padding = {key: np.zeros_like(value) for key, value in row(0).items()}

    def batch_from(first: int) -> Batch:
        local_rows = [row(int(i)) if i < count else padding for i in first + local]
        return [{key: np.stack([row[key] for row in local_rows]) for key in padding}]

    return lambda: map(batch_from, range(0, count, size))


def _manifest_facts(config: AdaptConfig, data: AdaptData) -> dict[str, object]:
    return {
        "length": data.length,
        "mask_documents": config.mask_documents,
        "task_adaptive": config.task_adaptive,
        "datasets": data.fingerprints,
    }
