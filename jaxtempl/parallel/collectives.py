"""Every collective of a training step, written out.

The mesh is `data x fsdp x tensor`. Rows of a batch are sharded over the first two, weights over `fsdp`, and heads,
feed-forward and vocabulary over `tensor`. Inside `on_mesh` each device computes with its own shards. Weights travel by
all-gather over `fsdp` and their gradients by reduce-scatter; over `tensor`, activations are reduced after a
row-parallel layer, gradients before a column-parallel one. Outside `on_mesh`, and on one device, they do nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree, Shaped

from jaxtempl.parallel.rules import AXIS_RULES, BATCH_AXES, LEAF_AXES, leaf_path, partition_specs


def shard_over_mesh(
    function: Callable[..., Any], mesh: Mesh, params: PyTree, outputs: Literal["gradient", "sums", "rows"]
) -> Callable[..., Any]:
    """Return `function(params, microbatch, scalar)` as each device runs it on its rows and its shard of every leaf.

    Args:
        function: returns what `outputs` names.
        mesh: devices that hold the parameters.
        params: parameters, or their shapes.
        outputs: "sums" are scalars that `reduce_gradients` has summed, "gradient" a pair of gradients and such sums,
            and "rows" an array with a row for each row of the microbatch.
    """
    if mesh.size == 1:
        return function
    parts = partition_specs(mesh, params)
    out_specs = {"gradient": (parts, P()), "sums": P(), "rows": P(BATCH_AXES)}
    specs: Any = {"in_specs": (parts, P(BATCH_AXES), P()), "out_specs": out_specs[outputs]}
    return jax.shard_map(function, mesh=mesh, check_vma=False, **specs)


def axis_size(axis: str) -> int:
    """Devices along an axis of the mesh inside `on_mesh`; 0 elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 0


def gather_params(params: PyTree, prefix: str = "", dtype: Any = None) -> PyTree:
    """Weights brought together over `fsdp`, and vectors over `tensor` too.

    Args:
        params: a tree of this device's parts of leaves, or with `prefix` of one layer's part of stacked ones.
        prefix: of the tree's paths, ending in "/".
        dtype: to convert matrices to before, so that half the bytes travel; None leaves them.
    """
    if not axis_size("fsdp"):
        return params

    def bring(keys: tuple[Any, ...], part: Array) -> Array:
        axes = LEAF_AXES[prefix + leaf_path(keys)][1 if prefix else 0 :]
        along = next((i for i, axis in enumerate(axes) if "fsdp" in AXIS_RULES[axis]), None)
        if along is None:
            return _shared(part)
        kind = part.dtype if dtype is None or part.ndim == 1 else dtype
        return _together(part, along, kind, "vector" in axes)

    return jax.tree_util.tree_map_with_path(bring, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _together(part: Array, along: int, dtype: Any, vector: bool) -> Array:
    """All parts, in `dtype`; the gradients of all rows are added up in float32, and each device keeps its part."""
    whole = jax.lax.all_gather(part.astype(dtype), "fsdp", axis=along, tiled=True)
    return jax.lax.all_gather(whole, "tensor", axis=along, tiled=True) if vector else whole


def _together_forward(part: Array, along: int, dtype: Any, vector: bool) -> tuple[Array, None]:
    return _together(part, along, dtype, vector), None


def _together_backward(along: int, dtype: Any, vector: bool, _: None, gradient: Array) -> tuple[Array]:
    gradient = gradient.astype(jnp.float32)
    gradient = _own(gradient, along) if vector else gradient  # it is the same on all devices of `tensor`
    return (jax.lax.psum_scatter(gradient, "fsdp", scatter_dimension=along, tiled=True),)


_together.defvjp(_together_forward, _together_backward)


@jax.custom_vjp
def _shared(part: Array) -> Array:
    """What every device holds whole; the gradients of all rows are added up."""
    return part


_shared.defvjp(lambda part: (part, None), lambda _, gradient: (jax.lax.psum(gradient, "fsdp"),))


def save_anything_except_gathered(_: Any, *__: Any, **parameters: Any) -> bool:
    """A policy of rematerialisation: weights lie sharded anyway, and are brought together again in the backward pass.

    JAX's own `save_anything_except_these_names` keeps what is named too, for it keeps everything.
    """
    call = parameters.get("call_jaxpr")  # `_together` is one call to it
    return call is None or not any(equation.primitive is jax.lax.all_gather_p for equation in call.eqns)


def _own(x: Array, along: int) -> Array:
    """This device's part of what all devices of `tensor` hold whole."""
    length = x.shape[along] // axis_size("tensor")
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("tensor") * length, length, along)


@jax.custom_vjp
def copy_to_tensor_parallel(x: Array) -> Array:
    """What every device of `tensor` is to multiply by its own columns; their gradients are added up."""
    return x


copy_to_tensor_parallel.defvjp(lambda x: (x, None), lambda _, gradient: (all_reduce(gradient),))


@jax.custom_vjp
def reduce_from_tensor_parallel(x: Array) -> Array:
    """The sum of what the devices of `tensor` found with their own rows; each takes its gradient as it is."""
    return all_reduce(x)


reduce_from_tensor_parallel.defvjp(lambda x: (all_reduce(x), None), lambda _, gradient: (gradient,))


def all_reduce(x: Array) -> Array:
    """The sum over the devices of `tensor`."""
    return jax.lax.psum(x, "tensor") if axis_size("tensor") > 1 else x


@jax.custom_vjp
def all_gather_columns(x: Array) -> Array:
    """The columns of all devices of `tensor`, side by side."""
    return jax.lax.all_gather(x, "tensor", axis=x.ndim - 1, tiled=True)


all_gather_columns.defvjp(
    lambda x: (all_gather_columns(x), None), lambda _, gradient: (_own(gradient, gradient.ndim - 1),)
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def local_columns(vector: Shaped[Array, " O"], count: int) -> Shaped[Array, " own"]:
    """Of a vector that every device holds whole, the part of this device's `count` columns."""
    return vector if len(vector) == count else _own(vector, 0)


def _own_columns_backward(count: int, length: int, gradient: Array) -> tuple[Array]:
    whole = gradient if length == count else jax.lax.all_gather(gradient, "tensor", axis=0, tiled=True)
    return (whole,)


local_columns.defvjp(lambda vector, count: (local_columns(vector, count), len(vector)), _own_columns_backward)


def embedding_lookup(table: Shaped[Array, "V D"], ids: Shaped[Array, "..."]) -> Shaped[Array, "... D"]:
    """Rows of a table of which each device of `tensor` holds some."""
    return reduce_from_tensor_parallel(_where_own(table.shape[0], ids, lambda own: table[own]))


def take_columns(columns: Shaped[Array, "T V"], ids: Shaped[Array, " T"]) -> Shaped[Array, " T"]:
    """One column of each row, where each device of `tensor` holds some columns."""
    own = lambda at: jnp.take_along_axis(columns, at[:, None], axis=1)[:, 0]  # noqa: E731
    return reduce_from_tensor_parallel(_where_own(columns.shape[1], ids, own))


def _where_own(count: int, ids: Array, take: Callable[[Array], Array]) -> Array:
    """What `take` finds for the ids of this device's range, and zero for others."""
    if axis_size("tensor") <= 1:
        return take(ids)
    own = local_ids(ids, count)
    found = take(jnp.clip(own, 0, count - 1))
    mine = (own >= 0) & (own < count)
    return jnp.where(mine.reshape(*mine.shape, *[1] * (found.ndim - mine.ndim)), found, 0)


def local_ids(ids: Shaped[Array, "..."], count: int) -> Shaped[Array, "..."]:
    """Ids counted from the first of this device's range of `count`; those of other devices fall outside of it."""
    return ids if axis_size("tensor") <= 1 else ids - jax.lax.axis_index("tensor") * count


def all_reduce_max(x: Array) -> Array:
    """The maximum over the devices of `tensor`; no gradient passes."""
    x = jax.lax.stop_gradient(x)
    return jax.lax.pmax(x, "tensor") if axis_size("tensor") > 1 else x


def reduce_gradients(gradients: PyTree, sums: PyTree) -> tuple[PyTree, PyTree]:
    """What the rows of all devices come to; gradients were summed over `fsdp` where their weights were gathered."""
    if not axis_size("fsdp"):
        return gradients, sums
    gradients = jax.lax.psum(gradients, "data") if axis_size("data") > 1 else gradients
    return gradients, jax.lax.psum(sums, BATCH_AXES)
