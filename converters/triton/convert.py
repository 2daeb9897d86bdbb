"""A bundle -> a version of a model in a Triton model repository. No JAX.

    OUT/NAME/config.pbtxt   how the model is served: written with its first version, tuned by its owner
             labels.txt     a template's id a line, by slot
             warmup/        `lengths` of the requests that Triton tries a version with
             1/ 2/ ...      whole bundles; Triton reads model.plan, or model.onnx and its data, and nothing else of them

A version gets its number only when all of it is there; those before it are not touched.
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
    """Adds the bundle that `config` names to its repository, and says as which version.

    Raises:
        UsageError: no bundle is named, the model's name is none, or `--max_batch_size` too large.
        UserError: the bundle cannot be served so, `--out` is no model repository, or the bundle does not go with the
            model's versions before it. The repository is as it was then.
    """
    if not config.bundle:
        raise UsageError("which bundle? pass --bundle=DIR, as bin/convert onnx or tensorrt made it")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", config.name):
        raise UsageError(f"--name={config.name!r} is no model's name; letters, digits, _ - and . are allowed")
    if config.max_batch_size > MAX_QUEUE_SIZE:
        raise UsageError(
            f"--max_batch_size={config.max_batch_size} is too large; as many as may wait are allowed: {MAX_QUEUE_SIZE}"
        )
    opened = Bundle.open(Path(config.bundle))
    check(opened, config)
    check_repository(config.out)
    serving = ServingOptions(config.name, config.device, config.max_batch_size, config.timeout_ms)
    print(f"{convert(opened, serving, config.out)}: served when Triton loads {config.name} next")


def check(given: Bundle, config: ConvertTritonConfig) -> None:
    """Raises UserError where Triton could not serve a bundle, or not as asked."""
    manifest = given.manifest
    if manifest["head"] != "template":
        raise UserError(
            f"{given.folder} is a language model; Triton serves template classifiers: convert a finetune run"
        )
    numbers = [manifest["slots"], *manifest["buckets"]]
    if not manifest["buckets"] or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise UserError(f"{given.folder} has slots and buckets {numbers}; all must be above 0: convert the run again")
    if manifest["model"] == bundle.PLAN:
        _check_engine(given, config)
    elif manifest["dtype"] == "int8" and config.device == "gpu":
        raise UserError(f"{given.folder} is int8 for ONNX Runtime on CPUs; pass --device=cpu, or a bundle of fp16")


def _check_engine(given: Bundle, config: ConvertTritonConfig) -> None:
    """An instance has the profiles by number, so they must be one a length, as `bin/convert tensorrt` makes them."""
    profiles, buckets = _profiles(given), given.manifest["buckets"]
    if config.device == "cpu":
        raise UserError(f"{given.folder} is an engine, which needs a GPU; drop --device=cpu or pass an ONNX bundle")
    if [profile["length"] for profile in profiles] != buckets:
        raise UserError(
            f"{given.folder} has the profiles {profiles}; one for each of {buckets} is needed: build it anew"
        )
    most = min(profile["batch"] for profile in profiles)
    if config.max_batch_size > most:
        raise UserError(
            f"{given.folder} computes at most {most} requests at once; --max_batch_size={most} or less is allowed"
        )


def _profiles(given: Bundle) -> list[dict[str, int]]:
    """Of an engine, the length and the largest batch of each; none of an ONNX model."""
    return given.manifest.get("engine", {}).get("profiles", [])


def check_repository(out: Path) -> None:
    """Raises UserError when something is at `out` that is no model repository."""
    inside = [path for path in out.iterdir() if not path.name.startswith(".")] if out.is_dir() else []
    strange = sorted(path.name for path in inside if not (path / CONFIG).is_file())
    if strange or (out.exists() and not out.is_dir()):
        what = f"has {strange[0]}, which is no model of Triton's" if strange else "is no folder"
        raise UserError(f"{out} {what}; name an empty or new folder, or a model repository")


def convert(given: Bundle, serving: ServingOptions, out: Path) -> Path:
    """Writes the model, or the next version of the one that is there.

    Args:
        given: a bundle that passed `check`.
        serving: settings of a new model; one that is there keeps its own.
        out: the repository.

    Returns:
        The version's folder.

    Raises:
        UserError: the bundle does not go with the versions that are there.
    """
    model = out / serving.name
    if not model.exists():
        with files.atomic_folder(model) as folder:
            _write_model(folder, given, serving)
        return model / "1"
    return _add(given, model)


def labels(slots: int, templates: Iterable[Template]) -> list[str]:
    """A line for each slot: its template's id, told where it is retired, and of padding that it is that.

    Args:
        slots: outputs of the model.
        templates: of all versions, oldest first; the newest that names a slot is told.
    """
    named = {t.slot: " ".join(t.id.split()) + ("" if t.active else " (retired)") for t in templates}
    return [named.get(slot, f"(padding {slot})") for slot in range(slots)]


def _write_model(folder: Path, given: Bundle, serving: ServingOptions) -> None:
    (folder / CONFIG).write_text(render(given.manifest, serving), encoding="utf-8")
    _write_labels(folder / LABELS, [given])
    (folder / "warmup").mkdir()
    for length in given.manifest["buckets"]:
        (folder / "warmup" / warmup_file(length)).write_bytes(struct.pack("<i", length))
    (folder / "1").mkdir()
    _copy(given, folder / "1")


def _add(given: Bundle, model: Path) -> Path:
    """The labels come first: they fit the versions before as well, and a new version may need them."""
    versions = _versions(model)
    for number, known in versions.items():
        _check_fits(given, known, f"version {number} of {model}")
    target = model / str(max(versions) + 1)
    with files.atomic_folder(target) as folder:
        _copy(given, folder)
        with files.atomic_file(model / LABELS) as temporary:
            _write_labels(temporary, [*versions.values(), given])
    return target


def _versions(model: Path) -> dict[int, Bundle]:
    numbers = sorted(int(path.name) for path in model.iterdir() if re.fullmatch("[1-9][0-9]*", path.name))
    if not numbers or not all((model / str(number) / bundle.MANIFEST).is_file() for number in numbers):
        raise UserError(f"{model} was not written by bin/convert triton; pass another --name or --out")
    return {number: Bundle.open(model / str(number)) for number in numbers}


def _check_fits(given: Bundle, known: Bundle, where: str) -> None:
    """A model's versions take the same requests, and name each slot the same: clients and labels serve them all."""
    facts, before = _facts(given), _facts(known)
    for key, value in facts.items():
        if value != before[key]:
            raise UserError(f"{given.folder} has {key} {value} and {where} has {before[key]}; pass another --name")
    if given.manifest["version"] == known.manifest["version"]:
        raise UserError(f"{given.folder} is {where} already; nothing was added")
    ids = {template.slot: template.id for template in known.templates}
    for template in given.templates:
        if ids.get(template.slot, template.id) != template.id:
            other = f"{ids[template.slot]!r} in {where} and {template.id!r} in {given.folder}"
            raise UserError(f"slot {template.slot} is {other}; keep templates in their slots or pass another --name")


def _facts(given: Bundle) -> dict[str, Any]:
    tokenizer = given.manifest["files"]["tokenizer.json"]["sha256"]
    return {key: given.manifest[key] for key in SHARED_KEYS} | {"profiles": _profiles(given), "tokenizer": tokenizer}


def _copy(given: Bundle, folder: Path) -> None:
    names: Sequence[str] = [bundle.MANIFEST, *given.manifest["files"]]
    for name in names:
        shutil.copyfile(given.folder / name, folder / name)


def _write_labels(path: Path, versions: Sequence[Bundle]) -> None:
    every = (template for version in versions for template in version.templates)
    lines = labels(versions[-1].manifest["slots"], every)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
