"""The device mesh: its shape, and the choice of one that fits the model and the batch."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh
from jaxtyping import PyTree

from jaxtempl.errors import UserError
from jaxtempl.parallel.rules import AXES, LEAF_AXES, axes_size, leaf_axes, leaf_path


class MeshShape(NamedTuple):
    """Number of devices along each axis of the mesh."""

    data: int
    fsdp: int
    tensor: int

    @property
    def devices(self) -> int:
        """Total number of devices."""
        return math.prod(self)

    @property
    def row_shards(self) -> int:
        """Number of shards of a batch's rows."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        """Format the shape as `data 1 x fsdp 8 x tensor 1`."""
        return " x ".join(f"{axis} {size}" for axis, size in zip(AXES, self, strict=True))


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh over the first of `devices`, by default those of all processes."""
    devices = (jax.devices() if devices is None else devices)[: shape.devices]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def choose_mesh(requested: MeshShape, params: PyTree, batch: int, devices: int) -> MeshShape:
    """Return the requested mesh; where an axis is 0, the one that uses most devices, on `fsdp` first.

    Args:
        requested: Sizes of the axes; 0 leaves the choice.
        params: Shapes of the model's parameters.
        batch: Rows of a microbatch, which must be a multiple of data x fsdp; 0 if rows are padded to one.
        devices: Number of available devices.

    Raises:
        UserError: No such mesh fits; the message states the reason and the nearest that fits.
    """
    fitting = [shape for shape in _all_shapes(devices) if not _misfits(shape, params, batch)]
    matching = [s for s in fitting if all(a in (0, size) for a, size in zip(requested, s, strict=True))]
    if matching:
        return max(matching, key=lambda shape: (shape.devices, -shape.tensor, shape.fsdp))
    smallest = MeshShape(*(size or 1 for size in requested))
    reasons = [f"needs {smallest.devices} devices of {devices}"] if smallest.devices > devices else []
    nearest = min(fitting, key=lambda shape: _distance(shape, smallest))
    flags = " ".join(f"--mesh.{axis}={size}" for axis, size in zip(AXES, nearest, strict=True))
    raise UserError(
        f"mesh {smallest} {'; '.join(reasons + _misfits(smallest, params, batch))}; the nearest that fits: {flags}"
    )


def _all_shapes(devices: int) -> Iterator[MeshShape]:
    for data, fsdp in itertools.product(range(1, devices + 1), repeat=2):
        yield from (MeshShape(data, fsdp, tensor) for tensor in range(1, devices // (data * fsdp) + 1))


def _misfits(shape: MeshShape, params: PyTree, batch: int) -> list[str]:
    """Return why a model and a batch cannot be sharded over a mesh, each reason once."""
    reasons = {f"does not divide the {batch} rows of a microbatch": None} if batch % shape.row_shards else {}
    sizes = shape._asdict()
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = leaf_path(keys)
        for axis, size, over in zip(LEAF_AXES[path], leaf.shape, leaf_axes(path, leaf.shape, sizes), strict=True):
            if size % axes_size(over, sizes):
                reasons[f"does not divide {axis}={size} by {axes_size(over, sizes)}"] = None
    return list(reasons)


def _distance(shape: MeshShape, target: MeshShape) -> float:
    return sum(abs(math.log(size / other)) for size, other in zip(shape, target, strict=True))
