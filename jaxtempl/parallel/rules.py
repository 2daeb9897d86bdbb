"""Sharding as two tables: the logical axes of each leaf, and the mesh axes that each logical axis is sharded over.

Applied to parameters, gradients and Adam's moments, they are ZeRO-3 without ZeRO: each device holds one shard in
fsdp x tensor of the whole train state.
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
BATCH_AXES = ("data", "fsdp")  # what the rows of a batch are cut over

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
    # BERT's own
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
    "any": (),  # of slots or of a vocabulary, whose number nothing need divide
    "three": (),
    "head_dim": (),
    "vocabulary": ("tensor",),
    "hidden": ("fsdp",),
    "vector": ("tensor", "fsdp"),  # every device needs the whole of it
    "bias": ("tensor", "fsdp"),  # a device needs the part that belongs to its heads or its feed-forward
    "heads": ("tensor",),
    "feed_forward": ("tensor",),
    "outputs": ("tensor",),
}
ANY_NUMBER = "outputs"  # templates come in any number: cut where that is a multiple, else whole along this axis


def partition_spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    """How a leaf of this path and shape is cut on a mesh of these sizes."""
    return P(*leaf_axes(path, shape, sizes))


def leaf_axes(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """The axes of the mesh over which each axis of a leaf is cut."""
    return [_cut(axis, size, sizes) for axis, size in zip(LEAF_AXES[path], shape, strict=True)]


def _cut(axis: str, size: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    whole = axis == ANY_NUMBER and size % axes_size(AXIS_RULES[axis], sizes)
    return () if whole else AXIS_RULES[axis]


def axes_size(over: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    """Return the number of shards that these mesh axes make together."""
    return math.prod(sizes[name] for name in over)


def leaf_path(keys: tuple[Any, ...]) -> str:
    """Return the path of a leaf, as `LEAVES` has it."""
    return "/".join(str(getattr(key, "key", key)) for key in keys)


def partition_specs(mesh: Mesh | AbstractMesh, params: PyTree) -> PyTree[P]:
    """How each leaf of a parameter tree (arrays or shapes) is cut."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: partition_spec(leaf_path(keys), leaf.shape, mesh.shape), params
    )


def shardings(mesh: Mesh | AbstractMesh, params: PyTree) -> PyTree[NamedSharding]:
    """Where each leaf of a parameter tree (arrays or shapes) lies."""
    return jax.tree.map(
        lambda cut: NamedSharding(mesh, cut), partition_specs(mesh, params), is_leaf=lambda x: isinstance(x, P)
    )


def with_shardings(shapes: PyTree, places: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes that say where they lie, for what is restored or compiled."""
    return jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, places)


def replicated(mesh: Mesh) -> NamedSharding:
    """For what every device holds: counts, scalars."""
    return NamedSharding(mesh, P())


def row_sharding(mesh: Mesh) -> NamedSharding:
    """For a microbatch: its rows are cut, the rest of its axes are not."""
    return NamedSharding(mesh, P(BATCH_AXES))


def local_rows(mesh: Mesh, count: int) -> Integer[np.ndarray, " own"]:
    """Of so many rows of a microbatch, those that devices of this process compute, in order."""
    cuts = row_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[cut] for cut in cuts]))
