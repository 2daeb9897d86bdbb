"""The collectives of a training step.

The mesh is `data x fsdp x tensor`. The rows of a batch are sharded over `data` and `fsdp`, weights over `fsdp`, and
heads, feed-forward and vocabulary over `tensor`. Inside `shard_over_mesh`, each device computes with its own shards:
weights are all-gathered over `fsdp` and their gradients reduce-scattered. Over `tensor`, activations are all-reduced
after a row-parallel layer and gradients before a column-parallel one (Megatron-LM, Shoeybi et al., 2019). Outside
`shard_over_mesh`, and on one device, these functions are identities.
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
        function: Returns what `outputs` names.
        mesh: Mesh of the parameters.
        params: Parameters, or their shapes.
        outputs: "sums" are scalars that `reduce_gradients` has summed, "gradient" a pair of gradients and such sums,
            and "rows" an array with a row for each row of the microbatch.
    """
    if mesh.size == 1:
        return function
    specs = partition_specs(mesh, params)
    out_specs: dict[str, Any] = {"gradient": (specs, P()), "sums": P(), "rows": P(BATCH_AXES)}
    in_specs = (specs, P(BATCH_AXES), P())
    return jax.shard_map(function, mesh=mesh, check_vma=False, in_specs=in_specs, out_specs=out_specs[outputs])


def axis_size(axis: str) -> int:
    """Return the number of devices along a mesh axis inside `shard_over_mesh`, and 0 elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 0


def gather_params(params: PyTree, prefix: str = "", dtype: Any = None) -> PyTree:
    """All-gather weights over `fsdp`, and vectors over `tensor` too.

    Args:
        params: Tree of this device's shards; with `prefix`, of one layer of the stacked blocks.
        prefix: Prefix of the tree's paths, ending in "/".
        dtype: Type that matrices are converted to first, which halves the traffic; None keeps theirs.
    """
    if not axis_size("fsdp"):
        return params

    def gather(keys: tuple[Any, ...], shard: Array) -> Array:
        axes = LEAF_AXES[prefix + leaf_path(keys)][1 if prefix else 0 :]
        axis = next((i for i, name in enumerate(axes) if "fsdp" in AXIS_RULES[name]), None)
        if axis is None:
            return _replicated(shard)
        gathered_dtype = shard.dtype if dtype is None or shard.ndim == 1 else dtype
        return _gather(shard, axis, gathered_dtype, "vector" in axes)

    return jax.tree_util.tree_map_with_path(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(shard: Array, axis: int, dtype: Any, vector: bool) -> Array:
    """All-gather a leaf in `dtype`; the backward pass reduce-scatters its gradient in float32."""
    whole = jax.lax.all_gather(shard.astype(dtype), "fsdp", axis=axis, tiled=True)
    return jax.lax.all_gather(whole, "tensor", axis=axis, tiled=True) if vector else whole


def _gather_forward(shard: Array, axis: int, dtype: Any, vector: bool) -> tuple[Array, None]:
    return _gather(shard, axis, dtype, vector), None


def _gather_backward(axis: int, dtype: Any, vector: bool, _: None, gradient: Array) -> tuple[Array]:
    gradient = gradient.astype(jnp.float32)
    gradient = _tensor_shard(gradient, axis) if vector else gradient  # equal on all devices of `tensor`
    return (jax.lax.psum_scatter(gradient, "fsdp", scatter_dimension=axis, tiled=True),)


_gather.defvjp(_gather_forward, _gather_backward)


@jax.custom_vjp
def _replicated(leaf: Array) -> Array:
    """Identity forward on a replicated leaf; all-reduce over `fsdp` backward."""
    return leaf


_replicated.defvjp(lambda leaf: (leaf, None), lambda _, gradient: (jax.lax.psum(gradient, "fsdp"),))


def save_anything_except_gathered(_: Any, *__: Any, **parameters: Any) -> bool:
    """Rematerialisation policy: save everything except gathered weights, which the backward pass gathers again.

    JAX's `save_anything_except_these_names` would still save the unnamed copies of a named value.
    """
    call = parameters.get("call_jaxpr")  # `_gather` is one call to it
    return call is None or not any(equation.primitive is jax.lax.all_gather_p for equation in call.eqns)


def _tensor_shard(x: Array, axis: int) -> Array:
    """Return this device's shard over `tensor` of a replicated array."""
    length = x.shape[axis] // axis_size("tensor")
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("tensor") * length, length, axis)


@jax.custom_vjp
def copy_to_tensor_parallel(x: Array) -> Array:
    """Identity forward; all-reduce over `tensor` backward. Goes before a column-parallel product."""
    return x


copy_to_tensor_parallel.defvjp(lambda x: (x, None), lambda _, gradient: (all_reduce(gradient),))


@jax.custom_vjp
def reduce_from_tensor_parallel(x: Array) -> Array:
    """All-reduce over `tensor` forward; identity backward. Goes after a row-parallel product."""
    return all_reduce(x)


reduce_from_tensor_parallel.defvjp(lambda x: (all_reduce(x), None), lambda _, gradient: (gradient,))


def all_reduce(x: Array) -> Array:
    """Return the sum over the devices of `tensor`."""
    return jax.lax.psum(x, "tensor") if axis_size("tensor") > 1 else x


@jax.custom_vjp
def all_gather_columns(x: Array) -> Array:
    """Concatenate the columns of all devices of `tensor`."""
    return jax.lax.all_gather(x, "tensor", axis=x.ndim - 1, tiled=True)


all_gather_columns.defvjp(
    lambda x: (all_gather_columns(x), None), lambda _, gradient: (_tensor_shard(gradient, gradient.ndim - 1),)
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def local_columns(vector: Shaped[Array, " O"], count: int) -> Shaped[Array, " local"]:
    """Return this device's `count` entries of a replicated vector; the backward pass all-gathers the gradient."""
    return vector if len(vector) == count else _tensor_shard(vector, 0)


def _local_columns_backward(count: int, length: int, gradient: Array) -> tuple[Array]:
    whole = gradient if length == count else jax.lax.all_gather(gradient, "tensor", axis=0, tiled=True)
    return (whole,)


local_columns.defvjp(lambda vector, count: (local_columns(vector, count), len(vector)), _local_columns_backward)


def embedding_lookup(table: Shaped[Array, "V D"], ids: Shaped[Array, "..."]) -> Shaped[Array, "... D"]:
    """Look ids up in a table whose rows are sharded over `tensor`."""
    return reduce_from_tensor_parallel(_take_local(table.shape[0], ids, lambda local: table[local]))


def take_columns(columns: Shaped[Array, "T V"], ids: Shaped[Array, " T"]) -> Shaped[Array, " T"]:
    """Return one column of each row of an array whose columns are sharded over `tensor`."""
    take = lambda local: jnp.take_along_axis(columns, local[:, None], axis=1)[:, 0]  # noqa: E731
    return reduce_from_tensor_parallel(_take_local(columns.shape[1], ids, take))


def _take_local(count: int, ids: Array, take: Callable[[Array], Array]) -> Array:
    """Return `take` of the ids in this device's range, and zero for the others."""
    if axis_size("tensor") <= 1:
        return take(ids)
    local = local_ids(ids, count)
    values = take(jnp.clip(local, 0, count - 1))
    is_local = (local >= 0) & (local < count)
    return jnp.where(is_local.reshape(*is_local.shape, *[1] * (values.ndim - is_local.ndim)), values, 0)


def local_ids(ids: Shaped[Array, "..."], count: int) -> Shaped[Array, "..."]:
    """Return ids relative to this device's range of `count`; those of other devices fall outside 0..count-1."""
    return ids if axis_size("tensor") <= 1 else ids - jax.lax.axis_index("tensor") * count


def all_reduce_max(x: Array) -> Array:
    """Return the maximum over the devices of `tensor`; no gradient flows through it."""
    x = jax.lax.stop_gradient(x)
    return jax.lax.pmax(x, "tensor") if axis_size("tensor") > 1 else x


def reduce_gradients(gradients: PyTree, sums: PyTree) -> tuple[PyTree, PyTree]:
    """All-reduce gradients over `data` and sums over the batch axes.

    `gather_params` has reduced the gradients over `fsdp` already.
    """
    if not axis_size("fsdp"):
        return gradients, sums
    gradients = jax.lax.psum(gradients, "data") if axis_size("data") > 1 else gradients
    return gradients, jax.lax.psum(sums, BATCH_AXES)
