"""A bundle -> a version of a model in a Triton model repository. No JAX.

    OUT/NAME/config.pbtxt   Triton's configuration: written with the first version, tuned by its owner
             labels.txt     one template id per line, by slot
             warmup/        `lengths` of the requests that Triton warms a version up with
             1/ 2/ ...      whole bundles; Triton reads only model.plan, or model.onnx and its data

A version gets its number once it is complete; earlier versions do not change.
"""

import re
import shutil
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from converters.triton.config import LABELS, MAX_QUEUE_SIZE, ServingOptions, render, warmup_file
from jaxtempl import files
from jaxtempl.bundle import bundle
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.config.converting import ConvertTritonConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.text.cases import Template

CONFIG = "config.pbtxt"
SHARED_KEYS = (
    "model",
    "dtype",
    "slots",
    "buckets",
    "window",
    "role_tags",
    "special_tokens",
)  # in all versions of a model


def main(config: ConvertTritonConfig) -> None:
    """Add the bundle that `config` names to its repository, and print its version.

    Raises:
        UsageError: No bundle is named, or the model's name or `--max_batch_size` is not allowed.
        UserError: The bundle cannot be served as configured, `--out` is not a model repository, or the bundle does not
            fit the model's earlier versions. The repository is unchanged then.
    """
    if not config.bundle:
        raise UsageError("no bundle is named; pass --bundle=DIR, the output of bin/convert onnx or tensorrt")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", config.name):
        raise UsageError(f"--name={config.name!r} is not a model name; letters, digits, _ - and . are allowed")
    if config.max_batch_size > MAX_QUEUE_SIZE:
        raise UsageError(
            f"--max_batch_size={config.max_batch_size} is above the queue's size; at most {MAX_QUEUE_SIZE} is allowed"
        )
    opened = Bundle.open(Path(config.bundle))
    check(opened, config)
    check_repository(config.out)
    options = ServingOptions(config.name, config.device, config.max_batch_size, config.timeout_ms)
    print(f"{convert(opened, options, config.out)}: Triton serves it after the next load of {config.name}")


def check(opened: Bundle, config: ConvertTritonConfig) -> None:
    """Raise UserError if Triton cannot serve the bundle as configured."""
    manifest = opened.manifest
    if manifest["head"] != "template":
        raise UserError(
            f"{opened.folder} is a language model; Triton serves template classifiers: convert a finetune run"
        )
    numbers = [manifest["slots"], *manifest["buckets"]]
    if not manifest["buckets"] or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise UserError(f"{opened.folder} has slots and buckets {numbers}; all must be above 0; convert the run again")
    if manifest["model"] == bundle.PLAN:
        _check_engine(opened, config)
    elif manifest["dtype"] == "int8" and config.device == "gpu":
        raise UserError(f"{opened.folder} is int8 for ONNX Runtime on CPUs; pass --device=cpu, or a bundle of fp16")


def _check_engine(opened: Bundle, config: ConvertTritonConfig) -> None:
    """Check the profiles: an instance names them by number, so there must be one per length, in order."""
    profiles, buckets = _profiles(opened), opened.manifest["buckets"]
    if config.device == "cpu":
        raise UserError(f"{opened.folder} is an engine, which needs a GPU; drop --device=cpu or pass an ONNX bundle")
    if [profile["length"] for profile in profiles] != buckets:
        raise UserError(
            f"{opened.folder} has the profiles {profiles}; one for each of {buckets} is needed; build the engine again"
        )
    maximum = min(profile["batch"] for profile in profiles)
    if config.max_batch_size > maximum:
        raise UserError(
            f"{opened.folder} computes at most {maximum} requests at once; pass --max_batch_size={maximum} or less"
        )


def _profiles(opened: Bundle) -> list[dict[str, int]]:
    """Return the length and the maximum batch of each profile of an engine; none for an ONNX model."""
    return opened.manifest.get("engine", {}).get("profiles", [])


def check_repository(out: Path) -> None:
    """Raise UserError if something else than a model repository is at `out`."""
    entries = [path for path in out.iterdir() if not path.name.startswith(".")] if out.is_dir() else []
    foreign = sorted(path.name for path in entries if not (path / CONFIG).is_file())
    if foreign or (out.exists() and not out.is_dir()):
        problem = f"has {foreign[0]}, which is not a Triton model" if foreign else "is not a folder"
        raise UserError(f"{out} {problem}; name an empty or new folder, or a model repository")


def convert(opened: Bundle, options: ServingOptions, out: Path) -> Path:
    """Write a new model, or the next version of an existing model.

    Args:
        opened: Bundle that passed `check`.
        options: Options of a new model; an existing model keeps its configuration.
        out: Folder of the repository.

    Returns:
        The version's folder.

    Raises:
        UserError: The bundle does not fit the existing versions.
    """
    model = out / options.name
    if not model.exists():
        with files.atomic_folder(model) as folder:
            _write_model(folder, opened, options)
        return model / "1"
    return _add(opened, model)


def labels(slots: int, templates: Iterable[Template]) -> list[str]:
    """Return a line for each slot: its template's id, marked if it is retired, or a mark of padding.

    Args:
        slots: Number of outputs of the model.
        templates: Templates of all versions, oldest first; the newest of a slot counts.
    """
    names = {t.slot: " ".join(t.id.split()) + ("" if t.active else " (retired)") for t in templates}
    return [names.get(slot, f"(padding {slot})") for slot in range(slots)]


def _write_model(folder: Path, opened: Bundle, options: ServingOptions) -> None:
    (folder / CONFIG).write_text(render(opened.manifest, options), encoding="utf-8")
    _write_labels(folder / LABELS, [opened])
    (folder / "warmup").mkdir()
    for length in opened.manifest["buckets"]:
        (folder / "warmup" / warmup_file(length)).write_bytes(struct.pack("<i", length))
    (folder / "1").mkdir()
    _copy(opened, folder / "1")


def _add(opened: Bundle, model: Path) -> Path:
    """Add a version; labels are written first, because they fit the earlier versions and the new one needs them."""
    versions = _versions(model)
    for number, earlier in versions.items():
        _check_fits(opened, earlier, f"version {number} of {model}")
    target = model / str(max(versions) + 1)
    with files.atomic_folder(target) as folder:
        _copy(opened, folder)
        with files.atomic_file(model / LABELS) as temporary:
            _write_labels(temporary, [*versions.values(), opened])
    return target


def _versions(model: Path) -> dict[int, Bundle]:
    numbers = sorted(int(path.name) for path in model.iterdir() if re.fullmatch("[1-9][0-9]*", path.name))
    if not numbers or not all((model / str(number) / bundle.MANIFEST).is_file() for number in numbers):
        raise UserError(f"{model} was not written by bin/convert triton; pass another --name or --out")
    return {number: Bundle.open(model / str(number)) for number in numbers}


def _check_fits(opened: Bundle, earlier: Bundle, where: str) -> None:
    """Check that both versions accept the same requests and name slots equally: they share clients and labels."""
    facts, before = _facts(opened), _facts(earlier)
    for key, value in facts.items():
        if value != before[key]:
            raise UserError(f"{opened.folder} has {key} {value} and {where} has {before[key]}; pass another --name")
    if opened.manifest["version"] == earlier.manifest["version"]:
        raise UserError(f"{opened.folder} is already {where}; nothing was added")
    ids = {template.slot: template.id for template in earlier.templates}
    for template in opened.templates:
        if ids.get(template.slot, template.id) != template.id:
            other = f"{ids[template.slot]!r} in {where} and {template.id!r} in {opened.folder}"
            raise UserError(f"slot {template.slot} is {other}; keep templates in their slots or pass another --name")


def _facts(opened: Bundle) -> dict[str, Any]:
    tokenizer = opened.manifest["files"]["tokenizer.json"]["sha256"]
    return {key: opened.manifest[key] for key in SHARED_KEYS} | {"profiles": _profiles(opened), "tokenizer": tokenizer}


def _copy(opened: Bundle, folder: Path) -> None:
    names: Sequence[str] = [bundle.MANIFEST, *opened.manifest["files"]]
    for name in names:
        shutil.copyfile(opened.folder / name, folder / name)


def _write_labels(path: Path, versions: Sequence[Bundle]) -> None:
    templates = (template for version in versions for template in version.templates)
    lines = labels(versions[-1].manifest["slots"], templates)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
