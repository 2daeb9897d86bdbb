"""Hugging Face's safetensors and our parameters, both ways, by the family's table.

Reading and writing go through the same rows, so they cannot drift apart. A folder is not trusted: it is read file by
file through `own_file`, its `manifest.json` is held to if it is one of ours, and nothing is made in memory that its
files are too small to fill.

Dims: H heads, N layers, V vocabulary, S slots.
"""

import contextlib
import functools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxtempl import architecture as architectures
from jaxtempl import files, flops
from jaxtempl.architecture import Architecture
from jaxtempl.errors import UserError
from jaxtempl.models import build
from jaxtempl.models.config_json import architecture_from, hugging_face_config
from jaxtempl.models.tables import TABLES, Head, Row, Table

Params = dict[str, Any]  # nested dict of float32 arrays

SHARD_BYTES = 5 * 10**9  # Hugging Face's own greatest file before it shards
FLOATS = ("F16", "BF16", "F32")
SINGLE, INDEX, TOKENIZER = "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
MANIFEST, KIND = "manifest.json", "huggingface"  # of folders that this project wrote; others have none, or their own
MOST_FAULTS = 20  # that are told
PICKLE = (
    "which could run code and is never loaded; convert it with transformers: "
    "AutoModelForCausalLM (a BERT: AutoModelForMaskedLM).from_pretrained(...).save_pretrained(...)"
)


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


class Slot(NamedTuple):
    """Where one stored tensor belongs."""

    row: Row
    layer: int | None
    shape: tuple[int, ...]  # as stored


class Source(NamedTuple):
    """One stored tensor, not read yet."""

    name: str  # without prefix or alias
    stored: str  # as the file has it
    file: Any
    shape: tuple[int, ...]
    dtype: str


class Found(NamedTuple):
    """What a folder holds, by its tensors' names and shapes.

    Attributes:
        architecture: from its config.json.
        head: that it has.
        parts: of the parameter tree that it has.
    """

    architecture: Architecture
    head: Head | None
    parts: frozenset[str]


class Opened(NamedTuple):
    """A folder whose tensors are all in order, none of them read yet."""

    architecture: Architecture
    head: Head | None
    sources: list[Source]
    slots: dict[str, Slot]


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
    with _opened(folder, architecture) as (found, head, sources, slots):
        return Weights(found, _fill(found, sources, slots, places), head)


def check(folder: Path, architecture: Architecture | None = None) -> Found:
    """What `read` would find, without making a tensor; raises what it would raise."""
    with _opened(folder, architecture) as (found, head, _, slots):
        return Found(found, head, frozenset(slot.row.part for slot in slots.values()))


@contextlib.contextmanager
def _opened(folder: Path, architecture: Architecture | None) -> Generator["Opened"]:
    found = architecture_from(files.read_json(own_file(folder, "config.json")))
    if architecture is not None:
        _check_agreement(folder, found, architecture)
    shards = _shards(folder)
    _check_sums(folder, shards)
    with contextlib.ExitStack() as stack:
        table = TABLES[found.family]
        sources, faults = _sources(folder, shards, table, stack)
        faults = faults or _oversized(found, sources)
        if faults:
            raise _unreadable(folder, table, faults)
        head: Head | None = next((table.heads[s.name] for s in sources if s.name in table.heads), None)
        slots = _stored_slots(found, head, sources)
        faults = _faults(sources, slots)
        if faults:
            raise _unreadable(folder, table, faults)
        yield Opened(found, head, sources, slots)


def own_file(folder: Path, name: str) -> Path:
    """The path of a file of a Hugging Face folder, there or not.

    The hub's cache keeps a revision as links, `snapshots/REVISION/NAME` to a file of `blobs/` beside `snapshots`. Those
    are followed, since what they lead to is part of the same download; no other link is.

    Raises:
        UserError: `name` is absolute, leaves the folder, or goes through another link.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots" and Path(name).name == name and (root / name).is_symlink():
        blob = Path(os.path.realpath(root / name))
        if blob.parent == root.parent.parent / "blobs":
            return blob
    return files.contained(folder, name)


def _check_sums(folder: Path, shards: Mapping[str, set[str]]) -> None:
    """Raises UserError where a manifest of ours says otherwise of a file that is read."""
    path = own_file(folder, MANIFEST)
    manifest = files.read_json(path) if path.exists() else None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        return
    listed = manifest["files"] if isinstance(manifest.get("files"), dict) else {}
    index = [INDEX] if SINGLE not in shards else []
    tokenizer = [TOKENIZER] if own_file(folder, TOKENIZER).exists() else []
    for name in ("config.json", *index, *tokenizer, *shards):
        files.check_sum(own_file(folder, name), listed.get(name))


def _unreadable(folder: Path, table: Table, faults: list[str]) -> UserError:
    more = [f"and {len(faults) - MOST_FAULTS:,} more faults"] if len(faults) > MOST_FAULTS else []
    told = "; ".join(faults[:MOST_FAULTS] + more)
    return UserError(f"{folder} cannot be read as {table.name} weights: {told}. Fetch the folder again")


def _oversized(a: Architecture, sources: list[Source]) -> list[str]:
    """Where config.json tells of a model that the files hold less than half of, before anything of its size is made."""
    layered = sum("{layer}" in row.stored for row in TABLES[a.family].rows)
    held = sum(math.prod(source.shape) for source in sources)
    asked = {
        "tensors": (a.layers * layered, len(sources)),
        "numbers": (flops.parameters(a, embeddings=False) + a.vocabulary * a.hidden, held),
    }
    return [
        f"config.json tells of {wanted:,} {what} and more, the files have {there:,}"
        for what, (wanted, there) in asked.items()
        if wanted > 2 * there
    ]


def write(
    folder: Path,
    architecture: Architecture,
    params: Mapping[str, Any],
    head: Head,
    config: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json and float32 safetensors into `folder`, which the caller holds by `files.atomic_folder`.

    Args:
        folder: exists.
        architecture: of `params`.
        params: the model's parameter tree, "head" included.
        head: which head that is.
        config: further keys of config.json.
        shard_bytes: greatest size of one file; beyond it there are shards and an index.
    """
    slots = _slots(architecture, head, params["head"]["kernel"].shape[1] if head == "template" else None)
    shards, stored = _plan(slots, shard_bytes), functools.partial(_stored_name, TABLES[architecture.family])
    for file, names in shards.items():
        tensors = {stored(name): _stored_array(params, slots[name], architecture.heads) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})  # the only value that transformers loads
    if len(shards) > 1:
        _write_json(folder / INDEX, _index(slots, shards, stored))
    _write_json(folder / "config.json", hugging_face_config(architecture, head) | dict(config or {}))


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Sums up every file of a folder of ours, to which `read` holds those that it reads; nothing is added after it.

    Args:
        folder: complete but for its manifest.json.
        facts: what else is told there.
    """
    listed = {p.name: {"sha256": files.sha256(p), "bytes": p.stat().st_size} for p in sorted(folder.iterdir())}
    files.write_json(folder / MANIFEST, {"kind": KIND, **facts, "files": listed})


def _check_agreement(folder: Path, found: Architecture, wanted: Architecture) -> None:
    got, want = architectures.told(found), architectures.told(wanted)
    differ = [f"{name} is {got.get(name)}, not {value}" for name, value in want.items() if got.get(name) != value]
    if differ:
        raise UserError(f"{folder} is of another size: {', '.join(differ)}; name the size of the weights, or others")


@functools.cache
def _shapes(architecture: Architecture, slots: int | None) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf of the model, by path."""
    leaves = jax.tree_util.tree_flatten_with_path(build.abstract_params(architecture, slots))[0]
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def _slots(architecture: Architecture, head: Head | None, slots: int | None) -> dict[str, Slot]:
    """Every stored name of a whole model, in the order of the table, and where it belongs."""
    shapes, table = _shapes(architecture, slots), TABLES[architecture.family]
    rows = (row for row in table.rows if table.heads.get(row.stored, head) == head and row.path in shapes)
    return {name: slot for row in rows for name, slot in _row_slots(row, architecture, shapes[row.path])}


def _stored_slots(a: Architecture, head: Head | None, sources: list[Source]) -> dict[str, Slot]:
    """What a folder with that head is to hold: of the optional part, only what it does hold."""
    table, there = TABLES[a.family], {source.name for source in sources}
    columns = next((s.shape[0] for s in sources if s.name == table.classifier and s.shape), None)
    found = _slots(a, head, columns if head == "template" else None)
    optional = {name: slot for name, slot in _slots(a, "template", 1).items() if slot.row.part == table.optional}
    kept = optional if there & set(optional) else {}
    return {name: slot for name, slot in found.items() if name not in optional} | kept


def _row_slots(row: Row, architecture: Architecture, shape: tuple[int, ...]) -> Iterator[tuple[str, Slot]]:
    layered = "{layer}" in row.stored
    ours = jax.ShapeDtypeStruct(shape[1:] if layered else shape, jnp.float32)
    stored = jax.eval_shape(lambda x: row.transform.write(x, architecture.heads), ours).shape
    for layer in range(architecture.layers) if layered else (None,):
        yield row.stored.format(layer=layer), Slot(row, layer, stored)


def _sources(
    folder: Path, shards: Mapping[str, set[str]], table: Table, stack: contextlib.ExitStack
) -> tuple[list[Source], list[str]]:
    """Every stored tensor but the dropped ones, and what is wrong with the files themselves.

    safetensors holds a file's header to the file's length and every tensor's shape to its bytes when it opens one.
    """
    sources: list[Source] = []
    faults: list[str] = []
    for name, promised in shards.items():
        try:
            file = stack.enter_context(safe_open(own_file(folder, name), framework="numpy"))
        except (SafetensorError, OSError) as error:
            faults.append(f"{name} is missing or damaged ({error})")
            continue
        stored = list(file.keys())
        faults += [f"{tensor} is not in {name}, where the index has it" for tensor in sorted(promised - set(stored))]
        sources += [_source(file, tensor, table) for tensor in stored]
    return [source for source in sources if not _is_dropped(source.name, table)], faults


def _shards(folder: Path) -> dict[str, set[str]]:
    """Names of the safetensors files of a folder, each with the tensors that the index promises in it."""
    if own_file(folder, SINGLE).exists():
        return {SINGLE: set()}
    if own_file(folder, INDEX).exists():
        return _indexed(folder)
    if any(folder.glob("pytorch_model*.bin*")):
        raise UserError(f"{folder} has its weights as a pickle (pytorch_model.bin), {PICKLE}")
    raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}; name a Hugging Face folder with safetensors")


def _indexed(folder: Path) -> dict[str, set[str]]:
    index = files.read_json(own_file(folder, INDEX))
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
        raise UserError(f"{folder / INDEX} has no weight_map of names and files; fetch the folder again")
    shards: dict[str, set[str]] = {file: set() for file in sorted(set(placed.values()))}
    for tensor, file in placed.items():
        shards[file].add(tensor)
    for file in shards:
        own_file(folder, file)
        if not file.endswith(".safetensors"):
            raise UserError(f"{folder / INDEX} names {file}, which is no safetensors and may be a pickle, {PICKLE}")
    return shards


def _source(file: Any, stored: str, table: Table) -> Source:
    name, view = stored.removeprefix(table.prefix), file.get_slice(stored)
    for older, newer in table.renamed.items():
        name = name.replace(older, newer)
    return Source(name, stored, file, tuple(view.get_shape()), view.get_dtype())


def _is_dropped(name: str, table: Table) -> bool:
    return re.sub(r"^layers\.\d+\.", "layers.{layer}.", name) in table.dropped


def _faults(sources: list[Source], slots: dict[str, Slot]) -> list[str]:
    """Missing, unknown, repeated and misshapen tensors, and those of a type that is not a float's."""
    times = Counter(source.name for source in sources)
    missing = [f"{name} is missing" for name in slots if name not in times]
    unknown = [f"{s.stored} has no place in the model" for s in sources if s.name not in slots]
    twice = [f"{name} is there {count} times" for name, count in times.items() if count > 1]
    wrong = [fault for s in sources if s.name in slots for fault in _tensor_faults(s, slots[s.name].shape)]
    return missing + unknown + twice + wrong


def _tensor_faults(source: Source, shape: tuple[int, ...]) -> Iterator[str]:
    if source.shape != shape:
        yield f"{source.stored} has shape {list(source.shape)}, not {list(shape)}"
    if source.dtype not in FLOATS:
        yield f"{source.stored} is {source.dtype}, not one of {', '.join(FLOATS)}"


def _fill(a: Architecture, sources: list[Source], slots: dict[str, Slot], places: Params | None) -> Params:
    """The parameter tree, leaf by leaf; with `places`, those leaves alone that it has."""
    params: Params = {}
    of_leaf: dict[str, list[Source]] = {}
    for source in sources:
        of_leaf.setdefault(slots[source.name].row.path, []).append(source)
    for path, stored in of_leaf.items():
        *parents, leaf = path.split("/")
        if places is None or parents[0] in places:
            within: Params = functools.reduce(lambda tree, key: tree.setdefault(key, {}), parents, params)
            place = None if places is None else _at(places, path)
            within[leaf] = _leaf(a, [(source, slots[source.name]) for source in stored], place)
    return params


def _leaf(a: Architecture, stored: list[tuple[Source, Slot]], place: jax.sharding.Sharding | None) -> Any:
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


def _leaf_shape(a: Architecture, slot: Slot) -> tuple[int, ...]:
    stored = jax.ShapeDtypeStruct(slot.shape, jnp.float32)
    one = jax.eval_shape(lambda x: slot.row.transform.read(x, a.heads), stored).shape
    return one if slot.layer is None else (a.layers, *one)


def _at(tree: Any, path: str) -> Any:
    return functools.reduce(lambda inner, key: inner[key], path.split("/"), tree)


def _stored_name(table: Table, name: str) -> str:
    return name if name in table.heads else table.prefix + name


def _stored_array(params: Mapping[str, Any], slot: Slot, heads: int) -> np.ndarray:
    ours = _at(params, slot.row.path)
    array = np.asarray(ours if slot.layer is None else ours[slot.layer])
    return np.ascontiguousarray(slot.row.transform.write(array, heads), np.float32)


def _plan(slots: dict[str, Slot], shard_bytes: int) -> dict[str, list[str]]:
    """File names and the stored names in each, filled in order."""
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


def _index(slots: dict[str, Slot], shards: dict[str, list[str]], stored: Callable[[str], str]) -> dict[str, Any]:
    total = sum(4 * math.prod(slot.shape) for slot in slots.values())
    placed = {stored(name): file for file, names in shards.items() for name in names}
    return {"metadata": {"total_size": total}, "weight_map": placed}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Plain JSON: these files are Hugging Face's, so no format number of ours goes in."""
    path.write_text(json.dumps(value, indent=2) + "\n")
