"""The files of a pretrained model's folder, as Hugging Face or sentence-transformers wrote it."""

from pathlib import Path
from typing import Any

from jaxtempl import files
from jaxtempl.errors import UserError
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.wordpiece import wordpiece_json

TOKENIZER, VOCABULARY = "tokenizer.json", "vocab.txt"
SUBFOLDER = "0_Transformer"  # sentence-transformers' name for the folder of its first module


def model_folder(folder: Path) -> Path:
    """Return the folder that holds config.json: `folder` itself, or the first module of sentence-transformers.

    Raises:
        UserError: modules.json names a folder outside of `folder`, or one that is not there.
    """
    modules = files.downloaded(folder, "modules.json")
    path = _first_module(files.read_json(modules)) if modules.is_file() else None
    if path is None and not (folder / "config.json").exists() and (folder / SUBFOLDER).is_dir():
        path = SUBFOLDER
    if not path:
        return folder
    inner = files.contained(folder, path)
    if not inner.is_dir():
        raise UserError(f"{modules} names the folder {path}, which is not there; fetch the folder again")
    return inner


def _first_module(modules: Any) -> str | None:
    """Return the `path` of the first Transformer of modules.json; empty where it is the folder itself."""
    entries = [entry for entry in modules if isinstance(entry, dict)] if isinstance(modules, list) else []
    paths = (entry.get("path") for entry in entries if str(entry.get("type", "")).endswith(".Transformer"))
    return next((path for path in paths if isinstance(path, str)), None)


def read_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from a tokenizer.json, a vocab.txt, or a folder that holds either.

    Raises:
        UserError: Nothing is there, or it is not a tokenizer with an end-of-text token.
    """
    if not path.is_dir():
        return _from_vocabulary(path, path.with_name("tokenizer_config.json")) if _is_text(path) else Tokenizer(path)
    found = folder_tokenizer(path)
    if found is None:
        raise UserError(f"{path} has neither {TOKENIZER} nor {VOCABULARY}; name a folder that has one")
    return found


def folder_tokenizer(folder: Path) -> Tokenizer | None:
    """Load the tokenizer of a pretrained model's folder, or return None where it has none.

    Raises:
        UserError: A file is a link or is not a tokenizer's.
    """
    for place in dict.fromkeys((model_folder(folder), folder)):
        if (ready := files.downloaded(place, TOKENIZER)).exists():
            return Tokenizer(ready)
        if (words := files.downloaded(place, VOCABULARY)).exists():
            return _from_vocabulary(words, files.downloaded(place, "tokenizer_config.json"))
    return None


def _is_text(path: Path) -> bool:
    return path.suffix == ".txt" and path.is_file()


def _from_vocabulary(words: Path, options: Path) -> Tokenizer:
    given = files.read_json(options) if options.exists() else {}
    if not isinstance(given, dict):
        raise UserError(f"{options} holds {type(given).__name__}; an object is needed: fetch the folder again")
    files.refuse_large(words)
    return Tokenizer(words, wordpiece_json(files.read_text(words), given))
