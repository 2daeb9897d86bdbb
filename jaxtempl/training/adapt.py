"""Phase 1: further language modelling on transcripts (paper section 4.2): causal, or masked for BERT (section 4.4)."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxtempl.config import mixture
from jaxtempl.config.training import AdaptConfig
from jaxtempl.data import loader, tapt
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.loader import Batch
from jaxtempl.data.mlm import Masker
from jaxtempl.errors import UsageError, UserError
from jaxtempl.models import factory
from jaxtempl.parallel import rules
from jaxtempl.parallel.mesh import make_mesh
from jaxtempl.runs import run
from jaxtempl.specs.architecture import Architecture, BertArchitecture
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.training import initialization, objectives, trainer
from jaxtempl.training.objectives import Objective
from jaxtempl.training.precision import compute_dtype
from jaxtempl.training.preemption import NEVER_PREEMPTED, PreemptionHandler

PAPER_LENGTH = 2048  # paper, Table 1: max-position-embeddings
VALIDATION_ROWS = (
    256  # of the first dataset: enough to tell losses apart by 0.01, cheap enough for every tenth of a run
)


def adapt(asked: AdaptConfig, stop: PreemptionHandler = NEVER_PREEMPTED) -> run.Run:
    """Trains a language model and leaves a run.

    Raises:
        UserError: anything about data, weights or flags that the user can mend.
    """
    if (asked.device, asked.devices, asked.mfu, asked.price) != ("none", 1, 0.0, 0.0):
        raise UsageError(
            "--device, --devices, --mfu and --price are of --plan; a training takes what it finds, or --mesh.fsdp=N"
        )
    dtype = compute_dtype(asked.precision)
    datasets = [(Dataset(folder), weight) for folder, weight in mixture.parse_mixture(asked.data)]
    begin = initialization.resolve_init(asked)
    tokenizer = begin.tokenizer
    length = row_length([dataset for dataset, _ in datasets], begin.architecture.positions)
    if asked.recipe == "paper" and length != PAPER_LENGTH:
        raise UserError(
            f"--recipe=paper is of rows of {PAPER_LENGTH} tokens, and --data has {length}; prepare it again"
        )
    rows_of = functools.partial(tapt.task_adaptive_rows, length=length) if asked.task_adaptive else Dataset.rows
    sources = [(rows_of(dataset, tokenizer, "train"), weight) for dataset, weight in datasets]
    total = sum(len(rows) for rows, _ in sources)
    steps = min(loader.steps_for_epochs(asked.epochs, total, asked.batch_size), asked.max_steps)
    settings = trainer.resolve_config(asked, "adapt", steps, saves=10, length=length)
    trainer.print_config(
        settings, f"{total:,} rows of {length} tokens, {settings.batch_size * length:,} tokens an update"
    )
    fingerprints = {str(dataset.folder): dataset.fingerprint for dataset, _ in datasets}
    trainer.check_agreement(settings, begin, fingerprints)
    a, piece = begin.architecture, loader.microbatch_rows(settings.batch_size, settings.gradient_accumulation_steps)
    mesh = trainer.resolve_mesh(settings, a, None, piece)
    validation = rows_of(datasets[0][0], tokenizer, "validation")
    own = functools.partial(rules.local_rows, make_mesh(mesh))
    task, changed = _objective(settings, a, dtype, tokenizer)
    return trainer.train_run(
        settings,
        begin,
        trainer.TrainingJob(
            phase="adapt",
            task=task,
            batches=loader.row_batches(
                sources, settings.batch_size, settings.gradient_accumulation_steps, settings.seed, own, changed
            ),
            validation=_validation(validation, piece, own, changed) if len(validation) else None,
            mesh=mesh,
            dtype=dtype,
            templates=[],
            facts={
                "length": length,
                "mask_documents": settings.mask_documents,
                "task_adaptive": settings.task_adaptive,
                "datasets": fingerprints,
            },
        ),
        stop,
    )


def _objective(
    settings: AdaptConfig, a: Architecture, dtype: Any, tokenizer: Tokenizer
) -> tuple[Objective, loader.RowTransform | None]:
    """The family's own, and what it makes of a packed row."""
    graphdef = factory.make_graphdef(a, None, dtype, settings.remat)
    if isinstance(a, BertArchitecture):
        return objectives.masked_lm(graphdef, settings.mask_documents), Masker(tokenizer)
    return objectives.causal_lm(graphdef, settings.mask_documents), None


def row_length(datasets: Sequence[Dataset], positions: int) -> int:
    """Tokens of the datasets' rows.

    Raises:
        UserError: they differ, or are more than the model has positions.
    """
    lengths = {dataset.manifest["length"] for dataset in datasets}
    if len(lengths) > 1 or max(lengths) > positions:
        raise UserError(
            f"the rows of --data are {', '.join(map(str, sorted(lengths)))} tokens long; they must be of one length, "
            f"at most the model's {positions} positions: prepare them again with one --length"
        )
    return lengths.pop()


def _validation(
    rows: Sequence[loader.Microbatch], size: int, own: loader.LocalRows, changed: loader.RowTransform | None
) -> Callable[[], Iterator[Batch]]:
    """The first rows of the held-out part, the last microbatch filled up with rows that are all padding."""
    count = min(len(rows), VALIDATION_ROWS)

    def row(index: int) -> loader.Microbatch:
        return rows[index] if changed is None else changed(rows[index], np.random.default_rng(index))

    empty = {key: np.zeros_like(value) for key, value in row(0).items()}

    def batch_from(first: int) -> Batch:
        part = [row(int(i)) if i < count else empty for i in first + own(size)]
        return [{key: np.stack([row[key] for row in part]) for key in empty}]

    return lambda: map(batch_from, range(0, count, size))
