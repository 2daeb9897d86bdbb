"""Phase 2: a template head on the right-most token, all weights tuned (paper section 4.3)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxtempl import batches, cluster, config, launch, partition, run, start, tasks
from jaxtempl.architecture import Architecture, NeoXArchitecture
from jaxtempl.batches import EVERYTHING, Batch, Share
from jaxtempl.config import FinetuneConfig
from jaxtempl.contexts import Contexts
from jaxtempl.dataset import Dataset
from jaxtempl.errors import UserError
from jaxtempl.interrupt import NEVER, Terminator
from jaxtempl.models import build
from jaxtempl.partition import Shape
from jaxtempl.precision import compute_dtype
from jaxtempl.tokenizer import Tokenizer


def main(argv: Sequence[str]) -> None:
    """`bin/finetune`."""
    settings = config.parse(FinetuneConfig, argv, lambda given: start.layers("finetune", given))
    with Terminator() as stop, cluster.joined(settings):
        finetune(settings, stop)


def finetune(asked: FinetuneConfig, stop: Terminator = NEVER) -> run.Run:
    """Trains a template classifier and leaves a run.

    Raises:
        UserError: anything about data, weights or flags that the user can mend.
    """
    dtype = compute_dtype(asked.precision)
    dataset = Dataset(asked.data)
    begin = start.point(asked)
    begin = begin._replace(architecture=_read_as_asked(begin.architecture, asked))
    if asked.length > begin.architecture.positions:
        raise UserError(
            f"--length={asked.length} is more than the model's {begin.architecture.positions} positions; use fewer"
        )
    tokenizer = Tokenizer(begin.tokenizer)
    count = len(dataset.labels("train").slot)
    if not count:
        raise UserError(
            f"{dataset.folder} has no labelled training contexts; prepare transcripts whose messages name templates"
        )
    chosen = batches.nested(count, asked.labels, asked.seed)
    contexts = Contexts(dataset, "train", tokenizer, asked.length, asked.role_tags, chosen)
    steps = batches.steps_in(asked.epochs, len(contexts), asked.batch)
    settings = launch.resolved(asked, "finetune", steps, saves=math.ceil(asked.epochs), length=asked.length)
    launch.show(settings, f"{len(contexts):,} labelled contexts of {count:,}, {len(dataset.templates)} templates")
    fingerprints = {str(dataset.folder): dataset.fingerprint}
    launch.agree(settings, begin, fingerprints)
    mesh = launch.mesh(settings, begin.architecture, len(dataset.templates), rows=0)
    held_out = Contexts(dataset, settings.select, tokenizer, asked.length, asked.role_tags)
    return launch.train_run(
        settings,
        begin,
        launch.Work(
            phase="finetune",
            task=tasks.template(build.graphdef(begin.architecture, len(dataset.templates), dtype, settings.remat)),
            batches=batches.labelled_batches(
                contexts, settings.batch, settings.accumulate, settings.seed, mesh.rows, _share(contexts, mesh)
            ),
            validation=_validation(held_out, settings, mesh) if (held_out.labels.slot >= 0).any() else None,
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


def _read_as_asked(a: Architecture, asked: FinetuneConfig) -> Architecture:
    """The architecture with the attention and the pooling that were asked for; raises UserError where it has none."""
    read: dict[str, Any] = {"attention": asked.attention, "pooling": asked.pooling}
    given = {name: value for name, value in read.items() if value != "auto"}
    if not given or isinstance(a, NeoXArchitecture):
        return dataclasses.replace(a, **given)
    flags = " ".join(f"--{name}={value}" for name, value in given.items())
    raise UserError(f"{flags} is of a Pythia; a BERT's positions see all, and its head reads [CLS]: leave it out")


def _share(contexts: Contexts, mesh: Shape) -> Share:
    """What this process makes of each batch; each of several finds the sizes of its share of the contexts."""
    processes, own = jax.process_count(), functools.partial(partition.own_rows, partition.make_mesh(mesh))
    if processes == 1:
        return EVERYTHING
    mine = [len(contexts[index].tokens) for index in range(jax.process_index(), len(contexts), processes)]
    return Share(own, cluster.interleaved(np.array(mine, np.int32), len(contexts)))


def _validation(contexts: Contexts, settings: FinetuneConfig, mesh: Shape) -> Callable[[], Iterator[Batch]]:
    share = _share(contexts, mesh)
    return lambda: batches.labelled_in_order(contexts, settings.batch, settings.accumulate, mesh.rows, share)
