"""Fetching Hugging Face folders: a local one, the embedded one, or one from the hub."""

from pathlib import Path

import httpx2  # what huggingface_hub speaks HTTP with; some of its errors come through
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from jaxtempl.config.paths import PACKAGE
from jaxtempl.errors import UserError

ELSEWHERE = "or fetch it on another machine (hf download NAME --local-dir=DIR) and pass --weights=DIR"
PATTERNS = ["config.json", "tokenizer.json", "model*.safetensors", "model.safetensors.index.json", "manifest.json"]


def fetch(name_or_folder: str, revision: str | None = None) -> Path:
    """The folder of a model.

    Args:
        name_or_folder: a folder; `assets/...`, which comes with this package; or a hub id such as
            `EleutherAI/pythia-410m`. HF_ENDPOINT names another hub, HF_HOME where downloads are kept.
        revision: branch, tag or commit on the hub.

    Raises:
        UserError: there is no such folder or repository, it has no safetensors, or the hub cannot be reached.
    """
    embedded = PACKAGE / name_or_folder
    if name_or_folder.startswith("assets/") and embedded.is_dir():
        return embedded
    if Path(name_or_folder).is_dir():
        return Path(name_or_folder)
    folder = _download(name_or_folder, revision)
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{name_or_folder} at revision {revision or 'main'} has no safetensors, and a pickle is never loaded; "
            "name another revision, or a folder of safetensors by --weights=DIR"
        )
    return folder


def _download(name: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except HFValidationError:
        raise UserError(f"{name} is neither a folder here nor a hub id (OWNER/NAME); pass --weights=DIR") from None
    except RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision!r} on the hub; name a branch, tag or commit of it") from None
    except RepositoryNotFoundError:
        raise UserError(f"{name} is neither a folder here nor open on the hub; check the name, {ELSEWHERE}") from None
    except (OSError, httpx2.HTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name} could not be fetched ({reason}); check the network, {ELSEWHERE}") from None
