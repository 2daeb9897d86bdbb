"""A redaction policy: which types are found and how they are replaced. Training records it and serving reads it."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from jaxtempl.config import structs
from jaxtempl.errors import UserError
from jaxtempl.text.redaction.model import model_sha256

DEFAULT = "default"
FORMAT = 1
CHECKED = ("EMAIL", "URL", "IP", "IBAN", "CARD", "SSN", "NINO", "NHS_NUMBER", "TAX_ID", "PENSION_NUMBER", "PHONE")
TYPES = (*CHECKED, "ADDRESS", "NAME")
REGIONS = ("US", "GB", "DE")
NAME = re.compile("[A-Z][A-Z_]*")


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of redaction.

    Attributes:
        format: Format of the file.
        types: Types of values that are found, of TYPES.
        regions: Countries whose national telephone numbers are found.
        patterns: The user's regular expressions, by the type that they find.
        keep: Values that are left in, such as the company's own telephone number.
        numbered: Whether the placeholders of a case are numbered: `<NAME_1>`, `<NAME_2>`.
        model: Folder of a spaCy model that finds people; empty for none.
        model_sha256: Digest of the model's files; read from them, never given.
        serve_model: Whether a server may run the model, which takes milliseconds a message.
    """

    format: int = FORMAT
    types: tuple[str, ...] = TYPES
    regions: tuple[str, ...] = REGIONS
    patterns: dict[str, str] = {}
    keep: tuple[str, ...] = ()
    numbered: bool = False
    model: str = ""
    model_sha256: str = ""
    serve_model: bool = False

    @property
    def digest(self) -> str:
        """Digest of the policy."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def read_policy(reference: str) -> Policy:
    """Read a policy: `default`, or the path of a YAML file.

    Raises:
        UserError: The file is missing, newer than this release, of another form, or has a fault.
    """
    if reference == DEFAULT:
        return Policy()
    example = "docs/redaction.md shows a policy"
    policy = structs.read_struct(Path(reference), Policy, FORMAT, _faults, example)
    if not policy.model:
        return policy
    folder = Path(policy.model).resolve()
    return msgspec.structs.replace(policy, model=str(folder), model_sha256=model_sha256(folder))


def policy_from(value: Any, path: Path) -> Policy:
    """Return the policy that a manifest holds.

    Raises:
        UserError: It is of another form, or newer than this release.
    """
    try:
        policy = msgspec.convert(value, Policy)
    except msgspec.ValidationError as error:
        raise _refusal(path, str(error)) from None
    if faults := list(_faults(policy)):
        raise _refusal(path, "; ".join(faults))
    return policy


def _refusal(path: Path, fault: str) -> UserError:
    return UserError(f"{path}: this release cannot apply the redaction policy: {fault}; update jaxtempl")


def _faults(policy: Policy) -> Iterator[str]:
    if policy.format > FORMAT:
        yield f"it has format {policy.format}; this release reads up to {FORMAT}"
    yield from _unknown("types", policy.types, TYPES)
    yield from _unknown("regions", policy.regions, REGIONS)
    for name, expression in policy.patterns.items():
        if not NAME.fullmatch(name) or name in TYPES:
            taken = ", ".join(TYPES)
            yield f"patterns has the type {name!r}; capitals and underscores, but none of {taken}, are allowed"
        try:
            re.compile(expression)
        except re.error as error:
            yield f"the pattern of {name} is not a regular expression ({error})"


def _unknown(key: str, given: tuple[str, ...], allowed: tuple[str, ...]) -> Iterator[str]:
    if unknown := sorted(set(given) - set(allowed)):
        yield f"{key} has {', '.join(unknown)}; {', '.join(allowed)} are allowed"
