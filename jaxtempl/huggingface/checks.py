"""Check a Hugging Face folder, which is untrusted, before any of its tensors is read.

Each file is opened through `files.downloaded`, a `manifest.json` of this project is verified, and no array is
allocated that the files are too small to fill.
"""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxtempl import files
from jaxtempl.errors import UserError
from jaxtempl.huggingface.config import architecture_from
from jaxtempl.huggingface.layout import INDEX, KIND, MANIFEST, SINGLE, TOKENIZER, StoredTensor, stored_tensors
from jaxtempl.huggingface.mapping import TABLES, Head, TensorTable
from jaxtempl.specs import flops
from jaxtempl.specs.architecture import Architecture, to_dict

FLOATS = ("F16", "BF16", "F32")
MAX_FAULTS = 20  # listed in one error
REFETCH = "fetch the folder again"
UNWRAP = (
    "name the folder of the whole model alone: adapters are merged first (peft's merge_and_unload), and of a wrapper "
    "(names that begin with module. or _orig_mod.) the model inside is saved"
)
TO_FLOAT32 = "save the weights in float32 (from_pretrained(..., dtype=torch.float32).save_pretrained(...))"
UNQUANTIZED = "name the weights as they were before quantization"
DIVERGED = "name an earlier checkpoint of the training that made them, or save them in float32, which does not overflow"
PICKLE = (
    "which could run code and is never loaded; convert it with transformers: "
    "AutoModelForCausalLM (a BERT: AutoModelForMaskedLM).from_pretrained(...).save_pretrained(...)"
)


class Fault(NamedTuple):
    """A fault of a folder's tensors, and what to do about it."""

    text: str
    remedy: str


class TensorSource(NamedTuple):
    """One stored tensor that is not read yet."""

    name: str  # without prefix or alias
    stored: str  # its name in the file
    file: Any
    shape: tuple[int, ...]
    dtype: str


class FolderContents(NamedTuple):
    """The contents of a folder, judged by the names and shapes of its tensors.

    Attributes:
        architecture: Shape of the model, from config.json.
        head: Head of the model, if any.
        parts: Stored parts of the parameter tree.
    """

    architecture: Architecture
    head: Head | None
    parts: frozenset[str]


class OpenFolder(NamedTuple):
    """A folder whose tensors are all valid, none of them read yet."""

    architecture: Architecture
    head: Head | None
    sources: list[TensorSource]
    slots: dict[str, StoredTensor]


def read_architecture(folder: Path) -> Architecture:
    """Return the architecture that config.json describes; no weights need be there.

    Raises:
        UserError: There is no config.json, or its model is not supported.
    """
    return architecture_from(files.read_json(files.downloaded(folder, "config.json")))


def check(folder: Path, architecture: Architecture | None = None) -> FolderContents:
    """Return what `read` would find, with one tensor at a time in memory.

    Raises:
        UserError: `read` would raise it, or a value is not finite.
    """
    with open_folder(folder, architecture) as (found, head, sources, slots):
        faults = [fault for source in sources for fault in _values_not_finite(source)]
        if faults:
            raise _unreadable(folder, TABLES[found.family], faults)
        return FolderContents(found, head, frozenset(slot.rule.part for slot in slots.values()))


@contextlib.contextmanager
def open_folder(folder: Path, architecture: Architecture | None) -> Generator[OpenFolder]:
    """Open a folder and check all of its tensors before any is read."""
    found = read_architecture(folder)
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
        yield OpenFolder(found, head, sources, slots)


def _check_sums(folder: Path, shards: Mapping[str, set[str]]) -> None:
    """Raise UserError if a file that is read differs from a manifest of this project."""
    path = files.downloaded(folder, MANIFEST)
    manifest = files.read_json(path) if path.exists() else None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        return
    listed = manifest["files"] if isinstance(manifest.get("files"), dict) else {}
    index = [INDEX] if SINGLE not in shards else []
    tokenizer = [TOKENIZER] if files.downloaded(folder, TOKENIZER).exists() else []
    for name in ("config.json", *index, *tokenizer, *shards):
        files.check_sum(files.downloaded(folder, name), listed.get(name))


def _unreadable(folder: Path, table: TensorTable, faults: list[Fault]) -> UserError:
    more = [f"and {len(faults) - MAX_FAULTS:,} more faults"] if len(faults) > MAX_FAULTS else []
    listed = "; ".join([fault.text for fault in faults[:MAX_FAULTS]] + more)
    remedies = "; ".join(dict.fromkeys(fault.remedy for fault in faults))
    advice = remedies[0].upper() + remedies[1:]
    return UserError(f"{folder} cannot be read as {table.name} weights: {listed}. {advice}")


def _oversized(a: Architecture, sources: list[TensorSource]) -> list[Fault]:
    """Return a fault if config.json describes a model more than twice the size of the files, before it is allocated."""
    layered = sum("{layer}" in rule.stored for rule in TABLES[a.family].rules)
    held = sum(math.prod(source.shape) for source in sources)
    counts = {
        "tensors": (a.layers * layered, len(sources)),
        "numbers": (flops.parameter_count(a, embeddings=False) + a.vocabulary * a.hidden, held),
    }
    return [
        Fault(f"config.json describes at least {described:,} {unit}, the files have {stored:,}", REFETCH)
        for unit, (described, stored) in counts.items()
        if described > 2 * stored
    ]


def _check_agreement(folder: Path, found: Architecture, expected: Architecture) -> None:
    if found.family != expected.family:
        kind, wanted = (TABLES[a.family].name for a in (found, expected))
        raise UserError(f"{folder} is a {kind}, and --size names a {wanted}; leave --size out, or name other weights")
    got, want = to_dict(found), to_dict(expected)
    differences = [f"{name} is {got.get(name)}, not {value}" for name, value in want.items() if got.get(name) != value]
    if differences:
        raise UserError(
            f"{folder} is of another size: {', '.join(differences)}; leave --size out, or name other weights"
        )


def _stored_slots(a: Architecture, head: Head | None, sources: list[TensorSource]) -> dict[str, StoredTensor]:
    """Return the tensors that a folder with this head must hold; those of the optional part only if it holds any."""
    table, names = TABLES[a.family], {source.name for source in sources}
    columns = next((s.shape[0] for s in sources if s.name == table.classifier and s.shape), None)
    required = stored_tensors(a, head, columns if head == "template" else None)
    optional = {
        name: slot for name, slot in stored_tensors(a, "template", 1).items() if slot.rule.part == table.optional
    }
    present = optional if names & set(optional) else {}
    return {name: slot for name, slot in required.items() if name not in optional} | present


def _sources(
    folder: Path, shards: Mapping[str, set[str]], table: TensorTable, stack: contextlib.ExitStack
) -> tuple[list[TensorSource], list[Fault]]:
    """Return every stored tensor except the dropped ones, and the faults of the files themselves.

    On opening a file, safetensors checks the header against the length and each tensor's shape against its bytes.
    """
    sources: list[TensorSource] = []
    faults: list[Fault] = []
    for name, listed in shards.items():
        try:
            file = stack.enter_context(safe_open(files.downloaded(folder, name), framework="numpy"))
        except (SafetensorError, OSError) as error:
            faults.append(Fault(f"{name} is missing or damaged ({error})", REFETCH))
            continue
        stored = list(file.keys())
        absent = sorted(listed - set(stored))
        faults += [Fault(f"{tensor} is not in {name}, where the index has it", REFETCH) for tensor in absent]
        sources += [_source(file, tensor, table) for tensor in stored]
    return [source for source in sources if not _is_dropped(source.name, table)], faults


def _shards(folder: Path) -> dict[str, set[str]]:
    """Return the names of a folder's safetensors files, each with the tensors that the index lists for it."""
    if files.downloaded(folder, SINGLE).exists():
        return {SINGLE: set()}
    if files.downloaded(folder, INDEX).exists():
        return _indexed(folder)
    if any(folder.glob("pytorch_model*.bin*")):
        raise UserError(f"{folder} has its weights as a pickle (pytorch_model.bin), {PICKLE}")
    raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}; name a Hugging Face folder with safetensors")


def _indexed(folder: Path) -> dict[str, set[str]]:
    index = files.read_json(files.downloaded(folder, INDEX))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{folder / INDEX} has no weight_map of names and files; fetch the folder again")
    shards: dict[str, set[str]] = {file: set() for file in sorted(set(weight_map.values()))}
    for tensor, file in weight_map.items():
        shards[file].add(tensor)
    for file in shards:
        files.downloaded(folder, file)
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


def _faults(sources: list[TensorSource], slots: dict[str, StoredTensor]) -> list[Fault]:
    """Return the unknown, missing, repeated and misshapen tensors, and those that are not of a float type."""
    times = Counter(source.name for source in sources)
    unknown = [Fault(f"{s.stored} has no place in the model", UNWRAP) for s in sources if s.name not in slots]
    missing = [Fault(f"{name} is missing", REFETCH) for name in slots if name not in times]
    twice = [Fault(f"{name} is there {count} times", REFETCH) for name, count in times.items() if count > 1]
    known = [source for source in sources if source.name in slots]
    wrong = [
        Fault(f"{s.stored} has shape {list(s.shape)}, not {list(slots[s.name].shape)}", REFETCH)
        for s in known
        if s.shape != slots[s.name].shape
    ]
    return _wrong_types(known) + unknown + missing + twice + wrong


def _wrong_types(sources: list[TensorSource]) -> list[Fault]:
    """Return one fault for each type that is not read, with its first tensor and the number of others."""
    names: dict[str, list[str]] = {}
    for source in sources:
        names.setdefault(source.dtype, []).append(source.stored)
    return [
        Fault(
            f"{first}{f' and {len(others):,} others are' if others else ' is'} {dtype}, not one of {', '.join(FLOATS)}",
            TO_FLOAT32 if dtype == "F64" else UNQUANTIZED,
        )
        for dtype, (first, *others) in names.items()
        if dtype not in FLOATS
    ]


def _values_not_finite(source: TensorSource) -> Iterator[Fault]:
    count = int((~np.isfinite(source.file.get_tensor(source.stored))).sum())
    if count:
        text = f"{source.stored} has {count:,} of {math.prod(source.shape):,} values that are NaN or infinite"
        yield Fault(text, DIVERGED)
