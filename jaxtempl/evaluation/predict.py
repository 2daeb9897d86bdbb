"""Logits of a finetune run's checkpoint, computed in microbatches of fixed shapes and returned in order.

Dims: N contexts, S slots, B rows, L length.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32, PyTree
from tqdm import tqdm

from jaxtempl.data import loader
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.data.loader import Batch
from jaxtempl.errors import UserError
from jaxtempl.runs.run import Run
from jaxtempl.text.window import bucket_of, pad_rows
from jaxtempl.training.precision import compute_dtype

SORTED = 1024  # contexts that are sorted by length at a time


class Predictor:
    """A loaded checkpoint that returns logits; it compiles once for each bucket of lengths."""

    def __init__(self, run: Run, step: int) -> None:
        graphdef = run.graphdef(compute_dtype("auto"))

        def classify(params: PyTree, tokens: Int32[Array, "B L"], lengths: Int32[Array, " B"]) -> Float[Array, "B S"]:
            model: Any = nnx.merge(graphdef, params)
            return model.classify(tokens, lengths)

        self._classify = jax.jit(classify)
        self._params = run.params(step)
        self._outputs = run.outputs
        self._window = run.window
        self._name = f"{run.folder}@{step}"

    def one(self, tokens: Sequence[int]) -> Float32[np.ndarray, " S"]:
        """Return the logits of one window."""
        ids, lengths = pad_rows([tokens], bucket_of(len(tokens), self._window.buckets))
        return self._rows({"tokens": ids, "lengths": lengths})[0]

    def all(self, contexts: LabelledContexts, rows: int, progress: bool = False) -> Float32[np.ndarray, "N S"]:
        """Return the logits of all contexts, in order.

        Args:
            contexts: contexts of one split.
            rows: rows of a microbatch of the shortest bucket; longer buckets have fewer rows of about as many tokens.
            progress: show a bar.
        """
        logits = np.empty((len(contexts), self._outputs), np.float32)
        with tqdm(total=len(contexts), desc="contexts", unit="", disable=not progress) as bar:
            for microbatch in (m for batch in _batches(contexts, rows) for m in batch):
                real = microbatch["weights"] > 0
                logits[microbatch["slots"][real]] = self._rows(microbatch)[real]
                bar.update(int(real.sum()))
        return logits

    def _rows(self, batch: loader.Microbatch) -> Float32[np.ndarray, "B S"]:
        """Return the logits of a microbatch; raise UserError where they are not finite, as ranks would be wrong."""
        logits = self._classify(self._params, jnp.asarray(batch["tokens"]), jnp.asarray(batch["lengths"]))
        if not np.isfinite(logits).all():
            raise UserError(f"{self._name} gives logits that are not finite; use another checkpoint of the run")
        return np.asarray(logits)


def _batches(contexts: LabelledContexts, rows: int) -> Iterator[Batch]:
    buckets = contexts.window.buckets
    cut = functools.partial(loader.microbatches, buckets=buckets, budget=rows * buckets[0], max_rows=rows)
    numbered = dataclasses.replace(
        contexts, slot=np.arange(len(contexts))
    )  # the index of each context, by which its logits are put in order
    source = grain.MapDataset.source(numbered).batch(SORTED, batch_fn=cut)
    return iter(source.to_iter_dataset(loader.WORKERS))
