"""The mesh of devices: its shape, and the choice of one that fits the model and the batch."""

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
    """Devices along each axis of the mesh."""

    data: int
    fsdp: int
    tensor: int

    @property
    def devices(self) -> int:
        """In all."""
        return math.prod(self)

    @property
    def row_shards(self) -> int:
        """Parts that the rows of a batch are cut into."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        """As it is told to people."""
        return " x ".join(f"{axis} {size}" for axis, size in zip(AXES, self, strict=True))


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the first of `devices`: those of all processes unless others are named."""
    devices = (jax.devices() if devices is None else devices)[: shape.devices]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def choose_mesh(asked: MeshShape, params: PyTree, batch: int, devices: int) -> MeshShape:
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
    least = MeshShape(*(size or 1 for size in asked))
    reasons = [f"needs {least.devices} devices of {devices}"] if least.devices > devices else []
    nearest = min(possible, key=lambda shape: _distance(shape, least))
    flags = " ".join(f"--mesh.{axis}={size}" for axis, size in zip(AXES, nearest, strict=True))
    raise UserError(
        f"mesh {least} {'; '.join(reasons + _misfits(least, params, batch))}; the nearest that fits: {flags}"
    )


def _all_shapes(devices: int) -> Iterator[MeshShape]:
    for data, fsdp in itertools.product(range(1, devices + 1), repeat=2):
        yield from (MeshShape(data, fsdp, tensor) for tensor in range(1, devices // (data * fsdp) + 1))


def _misfits(shape: MeshShape, params: PyTree, batch: int) -> list[str]:
    """Why a model and a batch cannot be cut so; one reason an axis."""
    found = {f"does not divide the {batch} rows of a microbatch": None} if batch % shape.row_shards else {}
    sizes = shape._asdict()
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = leaf_path(keys)
        for axis, size, over in zip(LEAF_AXES[path], leaf.shape, leaf_axes(path, leaf.shape, sizes), strict=True):
            if size % axes_size(over, sizes):
                found[f"does not divide {axis}={size} by {axes_size(over, sizes)}"] = None
    return list(found)


def _distance(shape: MeshShape, wanted: MeshShape) -> float:
    return sum(abs(math.log(size / want)) for size, want in zip(shape, wanted, strict=True))
