"""Phase 2: a template head on the right-most token, all weights tuned (paper section 4.3)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
from jaxtempl.specs.architecture import Architecture, BertArchitecture
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window
from jaxtempl.training import initialization, objectives, trainer
from jaxtempl.training.initialization import Initialization
from jaxtempl.training.precision import compute_dtype
from jaxtempl.training.preemption import NEVER_PREEMPTED, PreemptionHandler

CACHED_MESSAGES = 2**16  # of the window; a message recurs in each later context of its case, and in each epoch


class FinetuneData(NamedTuple):
    """The labelled contexts of a training.

    Attributes:
        dataset: Dataset that they come from.
        train: Training contexts.
        validation: Held-out contexts.
        labels: Number of labelled training contexts in the dataset.
    """

    dataset: Dataset
    train: LabelledContexts
    validation: LabelledContexts
    labels: int

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of the dataset by its folder."""
        return {str(self.dataset.folder): self.dataset.fingerprint}


def finetune(config: FinetuneConfig, preemption: PreemptionHandler = NEVER_PREEMPTED) -> run.Run:
    """Train a template classifier and return its run.

    Raises:
        UserError: Data, weights or flags do not fit.
    """
    trainer.check_flags(config)
    dataset = Dataset(config.data)
    init = initialization.resolve_init(config)
    init = init._replace(architecture=set_attention_and_pooling(init.architecture, config))
    check_length(config, init.architecture)
    data = _load_data(config, dataset, init.tokenizer)
    config = _resolve_config(config, data)
    trainer.check_agreement(config, init, data.fingerprints)
    return trainer.train_run(config, init, _job(config, init, data), preemption)


def set_attention_and_pooling(a: Architecture, config: FinetuneConfig) -> Architecture:
    """Return the architecture with the configured attention and pooling. Raises UserError if it has neither."""
    flags: dict[str, Any] = {"attention": config.attention, "pooling": config.pooling}
    given = {name: value for name, value in flags.items() if value != "auto"}
    if isinstance(a, BertArchitecture) and ("attention" in given or config.pooling == "last"):
        text = " ".join(f"--{name}={value}" for name, value in given.items())
        raise UserError(
            f"{text} needs a Pythia; a BERT attends to all positions, and its head reads [CLS] or the mean: leave it "
            "out, or choose --pooling=first or mean"
        )
    return dataclasses.replace(a, **given)


def check_length(config: FinetuneConfig, a: Architecture) -> None:
    """Raise UserError if the window is longer than the model's positions."""
    if config.length > a.positions:
        raise UserError(f"--length={config.length} is more than the model's {a.positions} positions; use fewer")


def _load_data(config: FinetuneConfig, dataset: Dataset, tokenizer: Tokenizer) -> FinetuneData:
    window = Window(tokenizer, config.length, config.role_tags, CACHED_MESSAGES)
    train = LabelledContexts.read(dataset, "train", window)
    if not len(train):
        raise UserError(
            f"{dataset.folder} has no labelled training contexts; prepare transcripts whose messages name templates"
        )
    return FinetuneData(
        dataset=dataset,
        train=choose_labels(train, config.labels, config.seed),
        validation=LabelledContexts.read(dataset, config.select, window),
        labels=len(train),
    )


def choose_labels(train: LabelledContexts, count: int, seed: int) -> LabelledContexts:
    """Return the first `count` labelled contexts of one seeded permutation; 0 returns all.

    Raises:
        UserError: There are fewer than `count`.
    """
    if count > len(train):
        raise UserError(f"--labels={count} is more than the {len(train)} training labels; use fewer")
    return train.sample(count or None, seed)


def _resolve_config(config: FinetuneConfig, data: FinetuneData) -> FinetuneConfig:
    """Return the config with every default that depends on the data, and print a summary."""
    steps = loader.steps_for_epochs(config.epochs, len(data.train), config.batch_size)
    config = trainer.resolve_config(config, "finetune", steps, saves=math.ceil(config.epochs), length=config.length)
    templates = f"{len(data.dataset.templates)} templates"
    trainer.print_summary(config, f"{len(data.train):,} labelled contexts of {data.labels:,}, {templates}")
    return config


def _job(config: FinetuneConfig, init: Initialization, data: FinetuneData) -> trainer.TrainingJob:
    dtype = compute_dtype(config.precision)
    templates = data.dataset.templates
    mesh = trainer.resolve_mesh(config, init.architecture, len(templates), rows=0)
    graphdef = factory.make_graphdef(init.architecture, len(templates), dtype, config.remat)
    return trainer.TrainingJob(
        phase="finetune",
        objective=objectives.template_classification(graphdef),
        batches=loader.labelled_batches(
            data.train,
            config.batch_size,
            config.gradient_accumulation_steps,
            config.seed,
            mesh.row_shards,
            _process_share(data.train, mesh),
        ),
        validation=_validation(data.validation, config, mesh) if (data.validation.slot >= 0).any() else None,
        mesh=mesh,
        dtype=dtype,
        templates=templates,
        facts=_manifest_facts(config, data),
    )


def _process_share(contexts: LabelledContexts, mesh: MeshShape) -> ProcessShare:
    """Return this process's share of each batch; several processes gather the lengths of all contexts first."""
    processes = jax.process_count()
    if processes == 1:
        return WHOLE_SHARE
    lengths = [len(contexts[index].tokens) for index in range(jax.process_index(), len(contexts), processes)]
    all_lengths = process_group.all_gather_interleaved(np.array(lengths, np.int32), len(contexts))
    return ProcessShare(functools.partial(rules.local_rows, make_mesh(mesh)), all_lengths)


def _validation(contexts: LabelledContexts, config: FinetuneConfig, mesh: MeshShape) -> Callable[[], Iterator[Batch]]:
    share = _process_share(contexts, mesh)
    return lambda: loader.labelled_in_order(
        contexts, config.batch_size, config.gradient_accumulation_steps, mesh.row_shards, share
    )


def _manifest_facts(config: FinetuneConfig, data: FinetuneData) -> dict[str, object]:
    redaction = data.dataset.manifest.get("redaction")  # a dataset of an earlier release has none
    return {
        "length": config.length,
        "role_tags": config.role_tags,
        "labels": config.labels,
        "select": config.select,
        "datasets": data.fingerprints,
        "redaction": redaction and redaction["policy"],
    }
