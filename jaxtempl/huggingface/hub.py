"""Fetch the folder of a model: a local one, the embedded one, or one from the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

import httpx2  # the HTTP client of huggingface_hub, which lets some of its errors through
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from jaxtempl.config.paths import PACKAGE
from jaxtempl.errors import UserError
from jaxtempl.text.pretrained import SUBFOLDER, model_folder

OFFLINE = "or fetch it on another machine (hf download NAME --local-dir=DIR) and pass --weights=DIR"
DESCRIPTION = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "modules.json"]
TENSORS = ["model*.safetensors", "model.safetensors.index.json", "manifest.json"]


def fetch(name_or_folder: str, revision: str | None = None, tensors: bool = True) -> Path:
    """Return the folder of a model that holds its config.json, downloaded where necessary.

    Args:
        name_or_folder: A folder; `assets/...`, which comes with this package; or a hub id such as
            `EleutherAI/pythia-410m`. HF_ENDPOINT names another hub, HF_HOME the folder of downloads.
        revision: Branch, tag or commit on the hub.
        tensors: Whether the weights are needed; without them a download takes seconds.

    Raises:
        UserError: There is no such folder or repository, it has no safetensors, or the hub cannot be reached.
    """
    embedded = PACKAGE / name_or_folder
    if name_or_folder.startswith("assets/") and embedded.is_dir():
        return embedded
    if Path(name_or_folder).is_dir():
        return model_folder(Path(name_or_folder))
    folder = model_folder(_download(name_or_folder, revision, DESCRIPTION + TENSORS if tensors else DESCRIPTION))
    if tensors and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{name_or_folder} at revision {revision or 'main'} has no safetensors, and a pickle is never loaded; "
            "name another revision, or a folder of safetensors by --weights=DIR"
        )
    return folder


def is_hub_id(name: str) -> bool:
    """Return whether a name of weights is that of a repository on the hub, `OWNER/NAME`, and no folder's."""
    if name.count("/") != 1 or name.startswith("assets/") or Path(name).is_dir():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    patterns = [*patterns, *(f"{SUBFOLDER}/{pattern}" for pattern in patterns)]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise UserError(f"{name} is neither a folder here nor a hub id (OWNER/NAME); pass --weights=DIR") from None
    except RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision!r} on the hub; name a branch, tag or commit of it") from None
    except RepositoryNotFoundError:
        raise UserError(f"{name} is neither a folder here nor open on the hub; check the name, {OFFLINE}") from None
    except (OSError, httpx2.HTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name} could not be fetched ({reason}); check the network, {OFFLINE}") from None
