"""A bundle: a folder that serves, complete in itself, and trusted only after it was checked. No JAX.

`model.onnx [model.onnx.data] | model.plan`, `tokenizer.json templates.json bundle.json`. `bundle.json` sums up the
other files; nothing that it does not name is read, and nothing is read that is not as it says.
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
from jaxtempl.text.tokenizer import Tokenizer

MANIFEST = "bundle.json"
ONNX, PLAN = "model.onnx", "model.plan"
KEYS: dict[str, Any] = {  # what every manifest has, and of which type
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
    """A bundle whose files are all as its manifest says.

    Attributes:
        folder: where it lies.
        manifest: `bundle.json`: version (digest of the files), head, dtype, window in tokens, special tokens in it,
            temperature, slots, length buckets, sha256 and bytes of every file, the run, and the verify figures.
        templates: the classes by slot; empty for a language model. Slots beyond them are padding.
    """

    folder: Path
    manifest: Mapping[str, Any]
    templates: list[Template]

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Checks and reads a bundle.

        Raises:
            UserError: `folder` is no bundle, a file is missing, changed, a link or outside of it, or the model is not
                one that may be opened (see `onnx_file.check`).
        """
        manifest = read_manifest(folder)
        listed = _check_files(folder, manifest["files"])
        for name in (manifest["model"], "tokenizer.json", "templates.json"):
            if name not in listed:
                raise UserError(f"{folder / MANIFEST} does not name {name} among its files; convert the run again")
        if manifest["version"] != content_digest(manifest["files"]):
            raise UserError(f"the version in {folder / MANIFEST} is not that of its files; convert the run again")
        if manifest["model"] == ONNX:
            onnx_check.check_onnx(folder / ONNX, listed)
        templates = [Template(**entry) for entry in files.read_json(folder / "templates.json")]
        return cls(folder, manifest, templates)

    @property
    def model(self) -> Path:
        """The file of the network."""
        return self.folder / self.manifest["model"]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the window is made with."""
        return Tokenizer(self.folder / "tokenizer.json")


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Sums up the files of `folder`, which the caller holds by `files.atomic_folder`, and writes `bundle.json`.

    Args:
        folder: has all files of the bundle but the manifest.
        facts: the other keys of the manifest, those of KEYS without version and files at least.
    """
    listed = {p.name: {"sha256": files.sha256(p), "bytes": p.stat().st_size} for p in sorted(folder.iterdir())}
    manifest = {"kind": "bundle", "version": content_digest(listed), **facts, "files": listed}
    files.write_json(folder / MANIFEST, manifest)


def content_digest(listed: Mapping[str, Mapping[str, Any]]) -> str:
    """Digest of the files' names and sums."""
    named = {name: known["sha256"] for name, known in listed.items()}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `bundle.json` says, which its files are not held to here; raises UserError where `folder` is no bundle."""
    path = files.contained(folder, MANIFEST)
    if not path.is_file():
        raise UserError(f"{folder} is no bundle; bin/convert onnx --run=RUN --out=DIR makes one")
    manifest = files.read_json(path)
    if not isinstance(manifest, dict) or manifest.get("kind") != "bundle":
        raise UserError(f"{path} is not that of a bundle; bin/convert onnx --run=RUN --out=DIR makes one")
    wrong = [key for key, kind in KEYS.items() if not isinstance(manifest.get(key), kind)]
    if wrong:
        raise UserError(f"{path} has no proper {', '.join(wrong)}; convert the run again")
    return manifest


def _check_files(folder: Path, listed: Mapping[str, Any]) -> dict[str, int]:
    """Every listed file's bytes, by name."""
    paths = {name: files.contained(folder, name) for name in listed}
    for name, path in paths.items():
        files.check_sum(path, listed[name])
    return {name: listed[name]["bytes"] for name in listed}
