"""Load Hugging Face safetensors into parameters, tensor by tensor, onto any sharding."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtempl.huggingface.checks import TensorSource, open_folder
from jaxtempl.huggingface.layout import Params, StoredTensor, leaf_at
from jaxtempl.huggingface.mapping import Head
from jaxtempl.specs.architecture import Architecture


class Weights(NamedTuple):
    """The contents of a folder.

    Attributes:
        architecture: Shape of the model, from config.json.
        params: Parameter tree in float32, without the parts that the folder lacks.
        head: Kind of the part "head", if any.
    """

    architecture: Architecture
    params: Params
    head: Head | None


def read(folder: Path, architecture: Architecture | None = None, shardings: Params | None = None) -> Weights:
    """Load a Hugging Face folder into float32, tensor by tensor.

    Args:
        folder: Folder with config.json and model.safetensors, or with model.safetensors.index.json and its shards.
            If it has a manifest of this project, these files and tokenizer.json must match it.
        architecture: Architecture that config.json must describe, where the caller knows it.
        shardings: Sharding of each leaf to load. The process then holds its local shards and one tensor at a time.
            None loads everything as numpy arrays.

    Raises:
        UserError: A file is a link, lies outside of the folder, or differs from its manifest; the model is not
            supported; or tensors are missing, unknown, repeated, or of a wrong shape or type, all listed in one line.
    """
    with open_folder(folder, architecture) as (found, head, sources, slots):
        return Weights(found, _load_tree(found, sources, slots, shardings), head)


def _load_tree(
    a: Architecture, sources: list[TensorSource], slots: dict[str, StoredTensor], shardings: Params | None
) -> Params:
    """Return the parameter tree, leaf by leaf; with `shardings`, only the parts that it has."""
    params: Params = {}
    by_leaf: dict[str, list[TensorSource]] = {}
    for source in sources:
        by_leaf.setdefault(slots[source.name].rule.path, []).append(source)
    for path, stored in by_leaf.items():
        *parents, leaf = path.split("/")
        if shardings is None or parents[0] in shardings:
            parent: Params = functools.reduce(lambda tree, key: tree.setdefault(key, {}), parents, params)
            sharding = None if shardings is None else leaf_at(shardings, path)
            parent[leaf] = _load_leaf(a, [(source, slots[source.name]) for source in stored], sharding)
    return params


def _load_leaf(
    a: Architecture, stored: list[tuple[TensorSource, StoredTensor]], sharding: jax.sharding.Sharding | None
) -> Any:
    """Return one leaf, a stacked one layer by layer: a whole numpy array, or the local shards of a global array."""
    shape = _leaf_shape(a, stored[0][1])
    indices: dict[Any, Any] = {} if sharding is None else dict(sharding.addressable_devices_indices_map(shape))
    slices = {str(index): index for index in indices.values()} or {"whole": (slice(None),) * len(shape)}
    parts = {name: np.empty(np.broadcast_to(0, shape)[index].shape, np.float32) for name, index in slices.items()}
    for source, (rule, layer, _) in stored:
        array = rule.transform.read(source.file.get_tensor(source.stored), a.heads)
        for name, index in slices.items():
            if layer is None:
                parts[name][...] = array[index]
            else:
                parts[name][layer] = array[index[1:]]
    if sharding is None:
        return parts["whole"]
    shards = [jax.device_put(parts[str(index)], device) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _leaf_shape(a: Architecture, slot: StoredTensor) -> tuple[int, ...]:
    stored = jax.ShapeDtypeStruct(slot.shape, jnp.float32)
    shape = jax.eval_shape(lambda x: slot.rule.transform.read(x, a.heads), stored).shape
    return shape if slot.layer is None else (a.layers, *shape)
