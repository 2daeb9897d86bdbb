"""The optional model tier: people whom a spaCy model finds, loaded from a folder and never by a package's name."""

import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtempl import files
from jaxtempl.errors import UserError
from jaxtempl.text.redaction.findings import Finding

TYPES = {"PERSON": "NAME", "PER": "NAME"}  # labels of English and of German models


def model_sha256(folder: Path) -> str:
    """Return the digest of a model's files.

    Raises:
        UserError: The folder is not a spaCy model.
    """
    if not (folder / "meta.json").is_file():
        raise UserError(
            f"model is {str(folder)!r}, which is no folder of a spaCy model (no meta.json); name its folder"
        )
    return hashlib.sha256(json.dumps(files.sums(folder), sort_keys=True).encode()).hexdigest()


def load_model(folder: Path, sha256: str) -> "PersonModel":
    """Load the model of a policy.

    Raises:
        UserError: The folder is not the model of the policy, or spaCy cannot load it or is not installed.
    """
    if (found := model_sha256(folder)) != sha256:
        raise UserError(
            f"{folder} is another model ({found[:12]}) than the redaction policy has ({sha256[:12]}); restore the model"
        )
    try:
        spacy: Any = importlib.import_module("spacy")
    except ModuleNotFoundError:
        raise UserError(
            f"the redaction policy has the model {folder}, and spaCy is not installed; install it"
        ) from None
    try:
        return PersonModel(spacy.load(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"spaCy cannot load {folder} ({error}); give a model of the installed version") from None


class PersonModel:
    """The recogniser of a loaded model."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def __call__(self, text: str) -> Iterator[Finding]:
        """Yield the people of a text."""
        for entity in self._pipeline(text).ents:
            if entity.label_ in TYPES:
                yield Finding(entity.start_char, entity.end_char, TYPES[entity.label_])
