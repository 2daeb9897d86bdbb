"""Hugging Face safetensors to our parameters, tensor by tensor, onto any sharding."""

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
    """What a folder holds.

    Attributes:
        architecture: from its config.json.
        params: the model's parameter tree, float32; without the parts that the folder does not have.
        head: which head "head" is.
    """

    architecture: Architecture
    params: Params
    head: Head | None


def read(folder: Path, architecture: Architecture | None = None, places: Params | None = None) -> Weights:
    """Reads a Hugging Face folder, tensor by tensor, into float32.

    Args:
        folder: has config.json and model.safetensors, or model.safetensors.index.json and its shards. Where it has a
            manifest of ours, those files and tokenizer.json must be as that says.
        architecture: what config.json must agree with, where the caller knows it.
        places: a sharding for each leaf wanted; this process then holds its own shards and one tensor, no more.
            Without it, all comes as numpy arrays.

    Raises:
        UserError: a file is a link, outside of the folder or not as its manifest says; the config is not ours to run;
            or any tensor is missing, unknown, twice there, or of a wrong shape or type: these are in one message.
    """
    with open_folder(folder, architecture) as (found, head, sources, slots):
        return Weights(found, _fill(found, sources, slots, places), head)


def _fill(
    a: Architecture, sources: list[TensorSource], slots: dict[str, StoredTensor], places: Params | None
) -> Params:
    """The parameter tree, leaf by leaf; with `places`, those leaves alone that it has."""
    params: Params = {}
    of_leaf: dict[str, list[TensorSource]] = {}
    for source in sources:
        of_leaf.setdefault(slots[source.name].row.path, []).append(source)
    for path, stored in of_leaf.items():
        *parents, leaf = path.split("/")
        if places is None or parents[0] in places:
            within: Params = functools.reduce(lambda tree, key: tree.setdefault(key, {}), parents, params)
            place = None if places is None else leaf_at(places, path)
            within[leaf] = _leaf(a, [(source, slots[source.name]) for source in stored], place)
    return params


def _leaf(a: Architecture, stored: list[tuple[TensorSource, StoredTensor]], place: jax.sharding.Sharding | None) -> Any:
    """One leaf, a stacked one layer by layer: whole as a numpy array, or this process's shards as a global array."""
    shape = _leaf_shape(a, stored[0][1])
    indices: dict[Any, Any] = {} if place is None else dict(place.addressable_devices_indices_map(shape))
    cuts = {str(index): index for index in indices.values()} or {"whole": (slice(None),) * len(shape)}
    parts = {name: np.empty(np.broadcast_to(0, shape)[index].shape, np.float32) for name, index in cuts.items()}
    for source, (row, layer, _) in stored:
        array = row.transform.read(source.file.get_tensor(source.stored), a.heads)
        for name, index in cuts.items():
            if layer is None:
                parts[name][...] = array[index]
            else:
                parts[name][layer] = array[index[1:]]
    if place is None:
        return parts["whole"]
    shards = [jax.device_put(parts[str(index)], device) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(shape, place, shards)


def _leaf_shape(a: Architecture, slot: StoredTensor) -> tuple[int, ...]:
    stored = jax.ShapeDtypeStruct(slot.shape, jnp.float32)
    one = jax.eval_shape(lambda x: slot.row.transform.read(x, a.heads), stored).shape
    return one if slot.layer is None else (a.layers, *one)
