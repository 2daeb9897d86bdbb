"""Apply the policy that the manifest of a run or bundle records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtempl.text.cases import Redact
from jaxtempl.text.redaction.policy import policy_from


def recorded_redact(manifest: Mapping[str, Any], path: Path) -> Redact | None:
    """Return the function that redacts by the manifest's policy; None without one, as before redaction existed.

    Args:
        manifest: Manifest whose key `redaction` is a policy or null.
        path: Its path, for errors.

    Raises:
        UserError: This release cannot apply the policy.
    """
    if not manifest.get("redaction"):
        return None
    from jaxtempl.text.redaction.redact import Redactor  # loads metadata of telephone numbers

    return Redactor(policy_from(manifest["redaction"], path)).messages
