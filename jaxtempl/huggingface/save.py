"""Write parameters as a Hugging Face folder: config.json, float32 safetensors, and a manifest."""

import functools
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxtempl import files
from jaxtempl.huggingface.config import hugging_face_config
from jaxtempl.huggingface.layout import INDEX, KIND, MANIFEST, SINGLE, StoredTensor, leaf_at, stored_tensors
from jaxtempl.huggingface.mapping import TABLES, Head, TensorTable
from jaxtempl.specs.architecture import Architecture

SHARD_BYTES = 5 * 10**9  # size above which Hugging Face shards


def write(
    folder: Path,
    architecture: Architecture,
    params: Mapping[str, Any],
    head: Head,
    config: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json and float32 safetensors into `folder`, which the caller makes with `files.atomic_folder`.

    Args:
        folder: Existing folder.
        architecture: Shape of the model.
        params: Parameter tree, "head" included.
        head: Kind of the head.
        config: Further keys of config.json.
        shard_bytes: Maximum bytes of one file; a larger model is written as shards and an index.
    """
    _write_json(folder / "config.json", hugging_face_config(architecture, head) | dict(config or {}))
    slots = stored_tensors(architecture, head, params["head"]["kernel"].shape[1] if head == "template" else None)
    shards, stored = _plan(slots, shard_bytes), functools.partial(_stored_name, TABLES[architecture.family])
    for file, names in shards.items():
        tensors = {stored(name): _stored_array(params, slots[name], architecture.heads) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})  # the only value that transformers loads
        shutil.copymode(folder / "config.json", folder / file)  # safetensors makes it readable by its owner only
    if len(shards) > 1:
        _write_json(folder / INDEX, _index(slots, shards, stored))


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the sha256 of every file of a complete folder; `read` compares the files that it opens with it.

    Args:
        folder: Folder that is complete except for manifest.json.
        facts: Further keys of the manifest.
    """
    files.write_json(folder / MANIFEST, {"kind": KIND, **facts, "files": files.list_files(folder)})


def _stored_name(table: TensorTable, name: str) -> str:
    return name if name in table.heads else table.prefix + name


def _stored_array(params: Mapping[str, Any], slot: StoredTensor, heads: int) -> np.ndarray:
    leaf = leaf_at(params, slot.rule.path)
    array = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
    return np.ascontiguousarray(slot.rule.transform.write(array, heads), np.float32)


def _plan(slots: dict[str, StoredTensor], shard_bytes: int) -> dict[str, list[str]]:
    """Return the file names and the stored names in each, filled in order."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, slot in slots.items():
        size = 4 * math.prod(slot.shape)
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, 1)}


def _index(
    slots: dict[str, StoredTensor], shards: dict[str, list[str]], stored: Callable[[str], str]
) -> dict[str, Any]:
    total = sum(4 * math.prod(slot.shape) for slot in slots.values())
    weight_map = {stored(name): file for file, names in shards.items() for name in names}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write plain JSON: the format is Hugging Face's, so it carries no format number of this project."""
    path.write_text(json.dumps(value, indent=2) + "\n")
