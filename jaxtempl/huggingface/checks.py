"""A Hugging Face folder is untrusted: it is checked before any tensor is read.

Each file is opened through `own_file`, a `manifest.json` of ours is verified, and no array is allocated that the files
are too small to fill.
"""

import contextlib
import math
import os
import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from jaxtempl import files
from jaxtempl.errors import UserError
from jaxtempl.huggingface.config import architecture_from
from jaxtempl.huggingface.layout import INDEX, KIND, MANIFEST, SINGLE, TOKENIZER, StoredTensor, stored_tensors
from jaxtempl.huggingface.mapping import TABLES, Head, TensorTable
from jaxtempl.specs import flops
from jaxtempl.specs.architecture import Architecture, to_dict

FLOATS = ("F16", "BF16", "F32")
MOST_FAULTS = 20  # that are told
PICKLE = (
    "which could run code and is never loaded; convert it with transformers: "
    "AutoModelForCausalLM (a BERT: AutoModelForMaskedLM).from_pretrained(...).save_pretrained(...)"
)


class TensorSource(NamedTuple):
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
    sources: list[TensorSource]
    slots: dict[str, StoredTensor]


def check(folder: Path, architecture: Architecture | None = None) -> Found:
    """What `read` would find, without making a tensor; raises what it would raise."""
    with open_folder(folder, architecture) as (found, head, _, slots):
        return Found(found, head, frozenset(slot.row.part for slot in slots.values()))


@contextlib.contextmanager
def open_folder(folder: Path, architecture: Architecture | None) -> Generator["Opened"]:
    """Open a folder and check all of its tensors before any is read."""
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


def _unreadable(folder: Path, table: TensorTable, faults: list[str]) -> UserError:
    more = [f"and {len(faults) - MOST_FAULTS:,} more faults"] if len(faults) > MOST_FAULTS else []
    told = "; ".join(faults[:MOST_FAULTS] + more)
    return UserError(f"{folder} cannot be read as {table.name} weights: {told}. Fetch the folder again")


def _oversized(a: Architecture, sources: list[TensorSource]) -> list[str]:
    """Where config.json tells of a model that the files hold less than half of, before anything of its size is made."""
    layered = sum("{layer}" in row.stored for row in TABLES[a.family].rows)
    held = sum(math.prod(source.shape) for source in sources)
    asked = {
        "tensors": (a.layers * layered, len(sources)),
        "numbers": (flops.parameter_count(a, embeddings=False) + a.vocabulary * a.hidden, held),
    }
    return [
        f"config.json tells of {wanted:,} {what} and more, the files have {there:,}"
        for what, (wanted, there) in asked.items()
        if wanted > 2 * there
    ]


def _check_agreement(folder: Path, found: Architecture, wanted: Architecture) -> None:
    got, want = to_dict(found), to_dict(wanted)
    differ = [f"{name} is {got.get(name)}, not {value}" for name, value in want.items() if got.get(name) != value]
    if differ:
        raise UserError(f"{folder} is of another size: {', '.join(differ)}; name the size of the weights, or others")


def _stored_slots(a: Architecture, head: Head | None, sources: list[TensorSource]) -> dict[str, StoredTensor]:
    """What a folder with that head is to hold: of the optional part, only what it does hold."""
    table, there = TABLES[a.family], {source.name for source in sources}
    columns = next((s.shape[0] for s in sources if s.name == table.classifier and s.shape), None)
    found = stored_tensors(a, head, columns if head == "template" else None)
    optional = {
        name: slot for name, slot in stored_tensors(a, "template", 1).items() if slot.row.part == table.optional
    }
    kept = optional if there & set(optional) else {}
    return {name: slot for name, slot in found.items() if name not in optional} | kept


def _sources(
    folder: Path, shards: Mapping[str, set[str]], table: TensorTable, stack: contextlib.ExitStack
) -> tuple[list[TensorSource], list[str]]:
    """Every stored tensor but the dropped ones, and what is wrong with the files themselves.

    safetensors holds a file's header to the file's length and every tensor's shape to its bytes when it opens one.
    """
    sources: list[TensorSource] = []
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


def _source(file: Any, stored: str, table: TensorTable) -> TensorSource:
    name, view = stored.removeprefix(table.prefix), file.get_slice(stored)
    for older, newer in table.renamed.items():
        name = name.replace(older, newer)
    return TensorSource(name, stored, file, tuple(view.get_shape()), view.get_dtype())


def _is_dropped(name: str, table: TensorTable) -> bool:
    return re.sub(r"^layers\.\d+\.", "layers.{layer}.", name) in table.dropped


def _faults(sources: list[TensorSource], slots: dict[str, StoredTensor]) -> list[str]:
    """Missing, unknown, repeated and misshapen tensors, and those of a type that is not a float's."""
    times = Counter(source.name for source in sources)
    missing = [f"{name} is missing" for name in slots if name not in times]
    unknown = [f"{s.stored} has no place in the model" for s in sources if s.name not in slots]
    twice = [f"{name} is there {count} times" for name, count in times.items() if count > 1]
    wrong = [fault for s in sources if s.name in slots for fault in _tensor_faults(s, slots[s.name].shape)]
    return missing + unknown + twice + wrong


def _tensor_faults(source: TensorSource, shape: tuple[int, ...]) -> Iterator[str]:
    if source.shape != shape:
        yield f"{source.stored} has shape {list(source.shape)}, not {list(shape)}"
    if source.dtype not in FLOATS:
        yield f"{source.stored} is {source.dtype}, not one of {', '.join(FLOATS)}"
