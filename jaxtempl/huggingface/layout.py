"""Which stored tensor of a Hugging Face folder holds which leaf of the parameter tree.

Loading and saving use the same rules, so they cannot diverge.

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

Params = dict[str, Any]  # nested dict of float32 arrays, or of their shardings
SINGLE, INDEX, TOKENIZER = "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
MANIFEST, KIND = "manifest.json", "huggingface"  # of folders that this project wrote; others have none, or another kind


class StoredTensor(NamedTuple):
    """The place of one stored tensor in the model.

    Attributes:
        rule: Rule that maps it to a leaf.
        layer: Index along the leaf's first axis; None for a leaf that is not stacked.
        shape: Shape as stored.
    """

    rule: TensorRule
    layer: int | None
    shape: tuple[int, ...]


@functools.cache
def _shapes(architecture: Architecture, slots: int | None) -> dict[str, tuple[int, ...]]:
    """Return the shape of every leaf of the model, by path."""
    leaves = jax.tree_util.tree_flatten_with_path(factory.abstract_params(architecture, slots))[0]
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def stored_tensors(architecture: Architecture, head: Head | None, slots: int | None) -> dict[str, StoredTensor]:
    """Return the place of every stored tensor of a whole model, by its name, in the order of the table."""
    shapes, table = _shapes(architecture, slots), TABLES[architecture.family]
    rules = (rule for rule in table.rules if table.heads.get(rule.stored, head) == head and rule.path in shapes)
    return {name: slot for rule in rules for name, slot in _rule_tensors(rule, architecture, shapes[rule.path])}


def _rule_tensors(
    rule: TensorRule, architecture: Architecture, shape: tuple[int, ...]
) -> Iterator[tuple[str, StoredTensor]]:
    layered = "{layer}" in rule.stored
    leaf = jax.ShapeDtypeStruct(shape[1:] if layered else shape, jnp.float32)
    stored = jax.eval_shape(lambda x: rule.transform.write(x, architecture.heads), leaf).shape
    for layer in range(architecture.layers) if layered else (None,):
        yield rule.stored.format(layer=layer), StoredTensor(rule, layer, stored)


def leaf_at(tree: Any, path: str) -> Any:
    """Return the leaf at a path such as `blocks/mlp/up/kernel`."""
    return functools.reduce(lambda inner, key: inner[key], path.split("/"), tree)
