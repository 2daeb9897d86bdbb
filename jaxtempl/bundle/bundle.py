"""Read and write bundles: folders that serve, complete in themselves, and checked before use. No JAX.

A bundle holds `model.onnx [model.onnx.data] | model.plan`, `tokenizer.json templates.json bundle.json`. `bundle.json`
is the manifest. It lists the sha256 sum and the size of every other file. Files that it does not list are never read.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtempl import files
from jaxtempl.bundle import onnx_check
from jaxtempl.errors import UserError
from jaxtempl.text.cases import Template
from jaxtempl.text.redaction.recorded import recorded_redact
from jaxtempl.text.templates import read_templates
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window

MANIFEST = "bundle.json"
ONNX, PLAN = "model.onnx", "model.plan"
KEYS: dict[str, Any] = {  # required keys of every manifest, with their types
    "version": str,
    "model": str,
    "head": str,
    "dtype": str,
    "window": int,
    "role_tags": bool,
    "special_tokens": int,
    "temperature": float,
    "slots": int,
    "buckets": list,
    "files": dict,
    "run": dict,
    "verify": dict,
}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle whose files all match its manifest.

    Attributes:
        folder: Location on disk.
        manifest: Content of `bundle.json`: version (digest of the files), head, dtype, window in tokens, number of
            special tokens in it, temperature, slots, length buckets, sha256 and bytes of every file, the run, the
            verification figures, and the redaction policy of its training data, if they had one.
        templates: Classes by slot; empty for a language model. Slots of the head beyond them are padding.
    """

    folder: Path
    manifest: Mapping[str, Any]
    templates: list[Template]

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Check and read a bundle.

        Raises:
            UserError: `folder` is not a bundle; a file is missing, changed, a link or outside the folder; a template's
                id cannot be kept; the model fails `onnx_check.check_onnx`; or the tokenizer has ids that its embedding
                lacks.
        """
        manifest = read_manifest(folder)
        sizes = _check_files(folder, manifest["files"])
        for name in (manifest["model"], "tokenizer.json", "templates.json"):
            if name not in sizes:
                raise UserError(f"{folder / MANIFEST} does not list {name} among its files; convert the run again")
        if manifest["version"] != content_digest(manifest["files"]):
            raise UserError(f"the version in {folder / MANIFEST} does not match its files; convert the run again")
        opened = cls(folder, manifest, read_templates(folder / "templates.json"))
        if manifest["model"] == ONNX:  # an engine was built from a bundle that passed
            _check_graph(opened, sizes)
        return opened

    @property
    def model(self) -> Path:
        """Path of the network's file."""
        return self.folder / self.manifest["model"]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer that the network's windows are made with."""
        return Tokenizer(self.folder / "tokenizer.json")

    @functools.cached_property
    def window(self) -> Window:
        """Window that encodes messages for the network."""
        redact = recorded_redact(self.manifest, self.folder / MANIFEST, serves=True)
        return Window(self.tokenizer, self.manifest["window"], self.manifest["role_tags"], redact=redact)


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `bundle.json` for the files of `folder`, which the caller holds by `files.atomic_folder`.

    Args:
        folder: Folder with all files of the bundle except the manifest.
        facts: Further keys of the manifest: at least those of KEYS without version and files.
    """
    listed = files.list_files(folder)
    manifest = {"kind": "bundle", "version": content_digest(listed), **facts, "files": listed}
    files.write_json(folder / MANIFEST, manifest)


def content_digest(listed: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a digest of the files' names and sha256 sums: the bundle's version."""
    sums = {name: entry["sha256"] for name, entry in listed.items()}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return `bundle.json` without checking the files that it lists.

    Raises:
        UserError: `folder` is not a bundle, or a key of the manifest is missing or of the wrong type.
    """
    path = files.contained(folder, MANIFEST)
    if not path.is_file():
        raise UserError(f"{folder} is not a bundle (no {MANIFEST}); bin/convert onnx --run=RUN --out=DIR makes one")
    manifest = files.read_json(path)
    if not isinstance(manifest, dict) or manifest.get("kind") != "bundle":
        raise UserError(f"{path} is not the manifest of a bundle; bin/convert onnx --run=RUN --out=DIR makes one")
    wrong = [key for key, kind in KEYS.items() if not isinstance(manifest.get(key), kind)]
    if wrong:
        raise UserError(f"{path} has missing or invalid keys: {', '.join(wrong)}; convert the run again")
    return manifest


def _check_graph(opened: Bundle, sizes: Mapping[str, int]) -> None:
    rows = onnx_check.embedding_rows(onnx_check.check_onnx(opened.model, sizes))
    if rows is not None:
        opened.tokenizer.check_rows(rows, str(opened.folder))


def _check_files(folder: Path, listed: Mapping[str, Any]) -> dict[str, int]:
    """Check every listed file, and return its bytes by name."""
    paths = {name: files.contained(folder, name) for name in listed}
    for name, path in paths.items():
        files.check_sum(path, listed[name])
    return {name: listed[name]["bytes"] for name in listed}
