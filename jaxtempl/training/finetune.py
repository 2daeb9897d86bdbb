"""Phase 2: a template head on the right-most token, all weights tuned (paper section 4.3)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxtempl.config.training import FinetuneConfig
from jaxtempl.data import loader
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.data.loader import WHOLE_SHARE, Batch, ProcessShare
from jaxtempl.errors import UserError
from jaxtempl.models import factory
from jaxtempl.parallel import process_group, rules
from jaxtempl.parallel.mesh import MeshShape, make_mesh
from jaxtempl.runs import run
from jaxtempl.specs.architecture import Architecture, NeoXArchitecture
from jaxtempl.text.window import Window
from jaxtempl.training import initialization, objectives, trainer
from jaxtempl.training.precision import compute_dtype
from jaxtempl.training.preemption import NEVER_PREEMPTED, PreemptionHandler

CACHED_MESSAGES = 2**16  # of the window; a message returns with each later context of its case, and in each epoch


def finetune(asked: FinetuneConfig, stop: PreemptionHandler = NEVER_PREEMPTED) -> run.Run:
    """Trains a template classifier and leaves a run.

    Raises:
        UserError: anything about data, weights or flags that the user can mend.
    """
    dtype = compute_dtype(asked.precision)
    dataset = Dataset(asked.data)
    begin = initialization.resolve_init(asked)
    begin = begin._replace(architecture=_read_as_asked(begin.architecture, asked))
    if asked.length > begin.architecture.positions:
        raise UserError(
            f"--length={asked.length} is more than the model's {begin.architecture.positions} positions; use fewer"
        )
    window = Window(begin.tokenizer, asked.length, asked.role_tags, CACHED_MESSAGES)
    training = LabelledContexts.read(dataset, "train", window)
    if not len(training):
        raise UserError(
            f"{dataset.folder} has no labelled training contexts; prepare transcripts whose messages name templates"
        )
    contexts = choose_labels(training, asked.labels, asked.seed)
    steps = loader.steps_for_epochs(asked.epochs, len(contexts), asked.batch_size)
    settings = trainer.resolve_config(asked, "finetune", steps, saves=math.ceil(asked.epochs), length=asked.length)
    trainer.print_config(
        settings, f"{len(contexts):,} labelled contexts of {len(training):,}, {len(dataset.templates)} templates"
    )
    fingerprints = {str(dataset.folder): dataset.fingerprint}
    trainer.check_agreement(settings, begin, fingerprints)
    mesh = trainer.resolve_mesh(settings, begin.architecture, len(dataset.templates), rows=0)
    held_out = LabelledContexts.read(dataset, settings.select, window)
    return trainer.train_run(
        settings,
        begin,
        trainer.TrainingJob(
            phase="finetune",
            task=objectives.template_classification(
                factory.make_graphdef(begin.architecture, len(dataset.templates), dtype, settings.remat)
            ),
            batches=loader.labelled_batches(
                contexts,
                settings.batch_size,
                settings.gradient_accumulation_steps,
                settings.seed,
                mesh.row_shards,
                _share(contexts, mesh),
            ),
            validation=_validation(held_out, settings, mesh) if (held_out.slot >= 0).any() else None,
            mesh=mesh,
            dtype=dtype,
            templates=dataset.templates,
            facts={
                "length": settings.length,
                "role_tags": settings.role_tags,
                "labels": settings.labels,
                "select": settings.select,
                "datasets": fingerprints,
            },
        ),
        stop,
    )


def choose_labels(training: LabelledContexts, count: int, seed: int) -> LabelledContexts:
    """Return the first `count` labelled contexts of one seeded permutation; 0 returns all.

    Raises:
        UserError: there are fewer.
    """
    if count > len(training):
        raise UserError(f"--labels={count} is more than the {len(training)} training labels there are; ask for fewer")
    return training.sample(count or None, seed)


def _read_as_asked(a: Architecture, asked: FinetuneConfig) -> Architecture:
    """The architecture with the attention and the pooling that were asked for; raises UserError where it has none."""
    read: dict[str, Any] = {"attention": asked.attention, "pooling": asked.pooling}
    given = {name: value for name, value in read.items() if value != "auto"}
    if not given or isinstance(a, NeoXArchitecture):
        return dataclasses.replace(a, **given)
    flags = " ".join(f"--{name}={value}" for name, value in given.items())
    raise UserError(f"{flags} is of a Pythia; a BERT's positions see all, and its head reads [CLS]: leave it out")


def _share(contexts: LabelledContexts, mesh: MeshShape) -> ProcessShare:
    """What this process makes of each batch; each of several finds the sizes of its share of the contexts."""
    processes, own = jax.process_count(), functools.partial(rules.local_rows, make_mesh(mesh))
    if processes == 1:
        return WHOLE_SHARE
    mine = [len(contexts[index].tokens) for index in range(jax.process_index(), len(contexts), processes)]
    return ProcessShare(own, process_group.all_gather_interleaved(np.array(mine, np.int32), len(contexts)))


def _validation(contexts: LabelledContexts, settings: FinetuneConfig, mesh: MeshShape) -> Callable[[], Iterator[Batch]]:
    share = _share(contexts, mesh)
    return lambda: loader.labelled_in_order(
        contexts, settings.batch_size, settings.gradient_accumulation_steps, mesh.row_shards, share
    )
