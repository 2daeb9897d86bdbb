"""Which stored tensor of a Hugging Face folder holds which leaf of our parameters.

Loading and saving go through the same rules, so they cannot diverge.

Dims: N layers, S slots.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtempl.huggingface.mapping import TABLES, Head, TensorRule
from jaxtempl.models import factory
from jaxtempl.specs.architecture import Architecture

Params = dict[str, Any]  # nested dict of float32 arrays
SINGLE, INDEX, TOKENIZER = "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
MANIFEST, KIND = "manifest.json", "huggingface"  # of folders that this project wrote; others have none, or their own


class StoredTensor(NamedTuple):
    """Where one stored tensor belongs."""

    row: TensorRule
    layer: int | None
    shape: tuple[int, ...]  # as stored


@functools.cache
def _shapes(architecture: Architecture, slots: int | None) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf of the model, by path."""
    leaves = jax.tree_util.tree_flatten_with_path(factory.abstract_params(architecture, slots))[0]
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def stored_tensors(architecture: Architecture, head: Head | None, slots: int | None) -> dict[str, StoredTensor]:
    """Every stored name of a whole model, in the order of the table, and where it belongs."""
    shapes, table = _shapes(architecture, slots), TABLES[architecture.family]
    rows = (row for row in table.rows if table.heads.get(row.stored, head) == head and row.path in shapes)
    return {name: slot for row in rows for name, slot in _row_slots(row, architecture, shapes[row.path])}


def _row_slots(
    row: TensorRule, architecture: Architecture, shape: tuple[int, ...]
) -> Iterator[tuple[str, StoredTensor]]:
    layered = "{layer}" in row.stored
    ours = jax.ShapeDtypeStruct(shape[1:] if layered else shape, jnp.float32)
    stored = jax.eval_shape(lambda x: row.transform.write(x, architecture.heads), ours).shape
    for layer in range(architecture.layers) if layered else (None,):
        yield row.stored.format(layer=layer), StoredTensor(row, layer, stored)


def leaf_at(tree: Any, path: str) -> Any:
    """Return the leaf at a path such as `blocks/mlp/up/kernel`."""
    return functools.reduce(lambda inner, key: inner[key], path.split("/"), tree)
