"""Sharding as two tables: the logical axes of each leaf, and the mesh axes that each logical axis is sharded over.

Applied to parameters, gradients and Adam's moments, the tables give ZeRO-3: each of the fsdp x tensor devices holds one
shard of the train state.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Integer, PyTree

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # axes that the rows of a batch are sharded over

LEAF_AXES: dict[str, tuple[str, ...]] = {
    "embed/embedding": ("vocabulary", "hidden"),
    "blocks/attention_norm/scale": ("layer", "vector"),
    "blocks/attention_norm/bias": ("layer", "vector"),
    "blocks/attention/query_key_value/kernel": ("layer", "hidden", "heads", "three", "head_dim"),
    "blocks/attention/query_key_value/bias": ("layer", "bias"),
    "blocks/attention/out/kernel": ("layer", "heads", "head_dim", "hidden"),
    "blocks/attention/out/bias": ("layer", "vector"),
    "blocks/mlp_norm/scale": ("layer", "vector"),
    "blocks/mlp_norm/bias": ("layer", "vector"),
    "blocks/mlp/up/kernel": ("layer", "hidden", "feed_forward"),
    "blocks/mlp/up/bias": ("layer", "bias"),
    "blocks/mlp/down/kernel": ("layer", "feed_forward", "hidden"),
    "blocks/mlp/down/bias": ("layer", "vector"),
    "norm/scale": ("vector",),
    "norm/bias": ("vector",),
    "head/kernel": ("hidden", "outputs"),
    # BERT only
    "embed/positions": ("position", "hidden"),
    "embed/types": ("type", "hidden"),
    "embed/norm/scale": ("vector",),
    "embed/norm/bias": ("vector",),
    "blocks/attention/query/kernel": ("layer", "hidden", "heads", "head_dim"),
    "blocks/attention/query/bias": ("layer", "bias"),
    "blocks/attention/key/kernel": ("layer", "hidden", "heads", "head_dim"),
    "blocks/attention/key/bias": ("layer", "bias"),
    "blocks/attention/value/kernel": ("layer", "hidden", "heads", "head_dim"),
    "blocks/attention/value/bias": ("layer", "bias"),
    "pooler/kernel": ("hidden", "pooled"),
    "pooler/bias": ("vector",),
    "head/transform/kernel": ("hidden", "pooled"),
    "head/transform/bias": ("vector",),
    "head/norm/scale": ("vector",),
    "head/norm/bias": ("vector",),
    "head/bias": ("any",),
}

AXIS_RULES: dict[str, tuple[str, ...]] = {
    "layer": (),
    "position": (),
    "type": (),
    "pooled": (),
    "any": (),  # slots or a vocabulary: any size
    "three": (),
    "head_dim": (),
    "vocabulary": ("tensor",),
    "hidden": ("fsdp",),
    "vector": ("tensor", "fsdp"),  # every device needs the whole vector
    "bias": ("tensor", "fsdp"),  # a device needs the entries of its heads or feed-forward columns
    "heads": ("tensor",),
    "feed_forward": ("tensor",),
    "outputs": ("tensor",),
}
ANY_SIZE = "outputs"  # any number of templates: sharded where the number is a multiple, else replicated


def partition_spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    """Return the spec of a leaf of this path and shape on a mesh of these axis sizes."""
    return P(*leaf_axes(path, shape, sizes))


def leaf_axes(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Return the mesh axes that each axis of a leaf is sharded over."""
    return [_mesh_axes(axis, size, sizes) for axis, size in zip(LEAF_AXES[path], shape, strict=True)]


def _mesh_axes(axis: str, size: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    is_replicated = axis == ANY_SIZE and size % axes_size(AXIS_RULES[axis], sizes)
    return () if is_replicated else AXIS_RULES[axis]


def axes_size(over: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    """Return the number of shards that these mesh axes make together."""
    return math.prod(sizes[name] for name in over)


def leaf_path(keys: tuple[Any, ...]) -> str:
    """Return the path of a leaf, as in `LEAF_AXES`."""
    return "/".join(str(getattr(key, "key", key)) for key in keys)


def partition_specs(mesh: Mesh | AbstractMesh, params: PyTree) -> PyTree[P]:
    """Return the spec of each leaf of a parameter tree (arrays or shapes)."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: partition_spec(leaf_path(keys), leaf.shape, mesh.shape), params
    )


def shardings(mesh: Mesh | AbstractMesh, params: PyTree) -> PyTree[NamedSharding]:
    """Return the sharding of each leaf of a parameter tree (arrays or shapes)."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), partition_specs(mesh, params), is_leaf=lambda x: isinstance(x, P)
    )


def with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Return shapes with their shardings, as restoring and compiling need them."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding), shapes, shardings
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds: counts and scalars."""
    return NamedSharding(mesh, P())


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a microbatch, over its rows."""
    return NamedSharding(mesh, P(BATCH_AXES))


def local_rows(mesh: Mesh, count: int) -> Integer[np.ndarray, " local"]:
    """Return the indices of a microbatch's `count` rows that this process's devices compute, in order."""
    slices = row_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[index] for index in slices]))
