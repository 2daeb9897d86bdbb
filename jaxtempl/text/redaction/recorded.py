"""Apply the policy that the manifest of a run or bundle records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtempl.errors import UserError
from jaxtempl.text.cases import Redact
from jaxtempl.text.redaction.policy import policy_from


def recorded_redact(manifest: Mapping[str, Any], path: Path, serves: bool) -> Redact | None:
    """Return the function that redacts by the manifest's policy; None without one, as before redaction existed.

    Args:
        manifest: Manifest whose key `redaction` is a policy or null.
        path: Its path, for errors.
        serves: Whether the manifest is that of a bundle; a server runs a model only if the policy allows it.

    Raises:
        UserError: This release cannot apply the policy, or its model is not for serving.
    """
    if not manifest.get("redaction"):
        return None
    from jaxtempl.text.redaction.redact import Redactor  # loads metadata of telephone numbers

    policy = policy_from(manifest["redaction"], path)
    if serves and policy.model and not policy.serve_model:
        raise UserError(
            f"{path}: the redaction policy runs a model, which takes milliseconds a message; to serve it nevertheless, "
            "prepare with serve_model: true in the policy, or leave the model out"
        )
    return Redactor(policy).messages
