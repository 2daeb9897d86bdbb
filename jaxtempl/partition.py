"""Sharding as two tables: what the axes of each leaf are, and over which axes of the mesh they are cut.

Applied to parameters, gradients and Adam's moments alike, they are ZeRO-3 without ZeRO: each device holds one part in
fsdp x tensor of the whole train state, and a layer's weights come together only while the layer is computed.

The mesh is `data x fsdp x tensor`: rows of a batch are cut over the first two, weights over `fsdp`, heads, feed-forward
and vocabulary over `tensor`. Inside `on_mesh` each device computes with its own parts, and all that travels is written
here: weights by all-gather over `fsdp` and their gradients by reduce-scatter; over `tensor` activations are added up
where a layer is `left`, their gradients where it is `entered`. Elsewhere, and on one device, all of these do nothing.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Integer, PyTree, Shaped

from jaxtempl.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # what the rows of a batch are cut over

LEAVES: dict[str, tuple[str, ...]] = {
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

RULES: dict[str, tuple[str, ...]] = {
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


class Shape(NamedTuple):
    """Devices along each axis of the mesh."""

    data: int
    fsdp: int
    tensor: int

    @property
    def devices(self) -> int:
        """In all."""
        return math.prod(self)

    @property
    def rows(self) -> int:
        """Parts that the rows of a batch are cut into."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        """As it is told to people."""
        return " x ".join(f"{axis} {size}" for axis, size in zip(AXES, self, strict=True))


def spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    """How a leaf of this path and shape is cut on a mesh of these sizes."""
    return P(*_cuts(path, shape, sizes))


def _cuts(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """The axes of the mesh over which each axis of a leaf is cut."""
    return [_cut(axis, size, sizes) for axis, size in zip(LEAVES[path], shape, strict=True)]


def _cut(axis: str, size: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    whole = axis == ANY_NUMBER and size % _parts(RULES[axis], sizes)
    return () if whole else RULES[axis]


def _parts(over: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[name] for name in over)


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in keys)


def _specs(mesh: Mesh | AbstractMesh, params: PyTree) -> PyTree[P]:
    """How each leaf of a parameter tree (arrays or shapes) is cut."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: spec(_path(keys), leaf.shape, mesh.shape), params)


def shardings(mesh: Mesh | AbstractMesh, params: PyTree) -> PyTree[NamedSharding]:
    """Where each leaf of a parameter tree (arrays or shapes) lies."""
    return jax.tree.map(lambda cut: NamedSharding(mesh, cut), _specs(mesh, params), is_leaf=lambda x: isinstance(x, P))


def placed(shapes: PyTree, places: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes that say where they lie, for what is restored or compiled."""
    return jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, places)


def whole(mesh: Mesh) -> NamedSharding:
    """For what every device holds: counts, scalars."""
    return NamedSharding(mesh, P())


def rows(mesh: Mesh) -> NamedSharding:
    """For a microbatch: its rows are cut, the rest of its axes are not."""
    return NamedSharding(mesh, P(ROWS))


def own_rows(mesh: Mesh, count: int) -> Integer[np.ndarray, " own"]:
    """Of so many rows of a microbatch, those that devices of this process compute, in order."""
    cuts = rows(mesh).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[cut] for cut in cuts]))


def on_mesh(function: Callable[..., Any], mesh: Mesh, params: PyTree, gradient: bool) -> Callable[..., Any]:
    """`function(params, microbatch, scalar)` run by each device on its own rows and its own part of every leaf.

    Args:
        function: gives scalars summed by `total`, or with `gradient` a pair of gradients and scalars, likewise.
        mesh: where the parameters lie.
        params: their shapes.
        gradient: whether it does.
    """
    if mesh.size == 1:
        return function
    parts = _specs(mesh, params)
    specs: Any = {"in_specs": (parts, P(ROWS), P()), "out_specs": (parts, P()) if gradient else P()}
    return jax.shard_map(function, mesh=mesh, check_vma=False, **specs)


def size(axis: str) -> int:
    """Devices along an axis of the mesh inside `on_mesh`; 0 elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 0


def gather(params: PyTree, prefix: str = "", dtype: Any = None) -> PyTree:
    """Weights brought together over `fsdp`, and vectors over `tensor` too.

    Args:
        params: a tree of this device's parts of leaves, or with `prefix` of one layer's part of stacked ones.
        prefix: of the tree's paths, ending in "/".
        dtype: to convert matrices to before, so that half the bytes travel; None leaves them.
    """
    if not size("fsdp"):
        return params

    def bring(keys: tuple[Any, ...], part: Array) -> Array:
        axes = LEAVES[prefix + _path(keys)][1 if prefix else 0 :]
        along = next((i for i, axis in enumerate(axes) if "fsdp" in RULES[axis]), None)
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


def keep_all_but_gathered(_: Any, *__: Any, **parameters: Any) -> bool:
    """A policy of rematerialisation: weights lie sharded anyway, and are brought together again in the backward pass.

    JAX's own `save_anything_except_these_names` keeps what is named too, for it keeps everything.
    """
    call = parameters.get("call_jaxpr")  # `_together` is one call to it
    return call is None or not any(equation.primitive is jax.lax.all_gather_p for equation in call.eqns)


def _own(x: Array, along: int) -> Array:
    """This device's part of what all devices of `tensor` hold whole."""
    length = x.shape[along] // size("tensor")
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("tensor") * length, length, along)


@jax.custom_vjp
def enter(x: Array) -> Array:
    """What every device of `tensor` is to multiply by its own columns; their gradients are added up."""
    return x


enter.defvjp(lambda x: (x, None), lambda _, gradient: (added(gradient),))


@jax.custom_vjp
def leave(x: Array) -> Array:
    """The sum of what the devices of `tensor` found with their own rows; each takes its gradient as it is."""
    return added(x)


leave.defvjp(lambda x: (added(x), None), lambda _, gradient: (gradient,))


def added(x: Array) -> Array:
    """The sum over the devices of `tensor`."""
    return jax.lax.psum(x, "tensor") if size("tensor") > 1 else x


@jax.custom_vjp
def joined(x: Array) -> Array:
    """The columns of all devices of `tensor`, side by side."""
    return jax.lax.all_gather(x, "tensor", axis=x.ndim - 1, tiled=True)


joined.defvjp(lambda x: (joined(x), None), lambda _, gradient: (_own(gradient, gradient.ndim - 1),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def own_columns(vector: Shaped[Array, " O"], count: int) -> Shaped[Array, " own"]:
    """Of a vector that every device holds whole, the part of this device's `count` columns."""
    return vector if len(vector) == count else _own(vector, 0)


def _own_columns_backward(count: int, length: int, gradient: Array) -> tuple[Array]:
    whole = gradient if length == count else jax.lax.all_gather(gradient, "tensor", axis=0, tiled=True)
    return (whole,)


own_columns.defvjp(lambda vector, count: (own_columns(vector, count), len(vector)), _own_columns_backward)


def lookup(table: Shaped[Array, "V D"], ids: Shaped[Array, "..."]) -> Shaped[Array, "... D"]:
    """Rows of a table of which each device of `tensor` holds some."""
    return leave(_where_own(table.shape[0], ids, lambda own: table[own]))


def picked(columns: Shaped[Array, "T V"], ids: Shaped[Array, " T"]) -> Shaped[Array, " T"]:
    """One column of each row, where each device of `tensor` holds some columns."""
    own = lambda at: jnp.take_along_axis(columns, at[:, None], axis=1)[:, 0]  # noqa: E731
    return leave(_where_own(columns.shape[1], ids, own))


def _where_own(count: int, ids: Array, take: Callable[[Array], Array]) -> Array:
    """What `take` finds for the ids of this device's range, and zero for others."""
    if size("tensor") <= 1:
        return take(ids)
    own = own_ids(ids, count)
    found = take(jnp.clip(own, 0, count - 1))
    mine = (own >= 0) & (own < count)
    return jnp.where(mine.reshape(*mine.shape, *[1] * (found.ndim - mine.ndim)), found, 0)


def own_ids(ids: Shaped[Array, "..."], count: int) -> Shaped[Array, "..."]:
    """Ids counted from the first of this device's range of `count`; those of other devices fall outside of it."""
    return ids if size("tensor") <= 1 else ids - jax.lax.axis_index("tensor") * count


def greatest(x: Array) -> Array:
    """The maximum over the devices of `tensor`; no gradient passes."""
    x = jax.lax.stop_gradient(x)
    return jax.lax.pmax(x, "tensor") if size("tensor") > 1 else x


def total(gradients: PyTree, sums: PyTree) -> tuple[PyTree, PyTree]:
    """What the rows of all devices come to; gradients were summed over `fsdp` where their weights were gathered."""
    if not size("fsdp"):
        return gradients, sums
    gradients = jax.lax.psum(gradients, "data") if size("data") > 1 else gradients
    return gradients, jax.lax.psum(sums, ROWS)


def make_mesh(shape: Shape, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the first of `devices`: those of all processes unless others are named."""
    devices = (jax.devices() if devices is None else devices)[: shape.devices]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def choose(asked: Shape, params: PyTree, batch: int, devices: int) -> Shape:
    """The mesh that was asked for, or where an axis is 0, the one that uses most devices, cut over `fsdp` first.

    Args:
        asked: sizes; 0 leaves the choice.
        params: the model's shapes.
        batch: rows computed at a time, which must be a multiple of data x fsdp; 0 where rows are filled up.
        devices: how many there are.

    Raises:
        UserError: no such mesh; with the reason and the nearest that fits.
    """
    possible = [shape for shape in _all_shapes(devices) if not _misfits(shape, params, batch)]
    wanted = [s for s in possible if all(a in (0, size) for a, size in zip(asked, s, strict=True))]
    if wanted:
        return max(wanted, key=lambda shape: (shape.devices, -shape.tensor, shape.fsdp))
    least = Shape(*(size or 1 for size in asked))
    reasons = [f"needs {least.devices} devices of {devices}"] if least.devices > devices else []
    nearest = min(possible, key=lambda shape: _distance(shape, least))
    flags = " ".join(f"--mesh.{axis}={size}" for axis, size in zip(AXES, nearest, strict=True))
    raise UserError(
        f"mesh {least} {'; '.join(reasons + _misfits(least, params, batch))}; the nearest that fits: {flags}"
    )


def _all_shapes(devices: int) -> Iterator[Shape]:
    for data, fsdp in itertools.product(range(1, devices + 1), repeat=2):
        yield from (Shape(data, fsdp, tensor) for tensor in range(1, devices // (data * fsdp) + 1))


def _misfits(shape: Shape, params: PyTree, batch: int) -> list[str]:
    """Why a model and a batch cannot be cut so; one reason an axis."""
    found = {f"does not divide the {batch} rows of a microbatch": None} if batch % shape.rows else {}
    sizes = shape._asdict()
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = _path(keys)
        for axis, size, over in zip(LEAVES[path], leaf.shape, _cuts(path, leaf.shape, sizes), strict=True):
            if size % _parts(over, sizes):
                found[f"does not divide {axis}={size} by {_parts(over, sizes)}"] = None
    return list(found)


def _distance(shape: Shape, wanted: Shape) -> float:
    return sum(abs(math.log(size / want)) for size, want in zip(shape, wanted, strict=True))
