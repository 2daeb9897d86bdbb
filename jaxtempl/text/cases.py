"""Cases, messages and templates, and how a decoded record is checked and becomes one."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, cast, get_args

import msgspec

from jaxtempl.errors import UserError

Role = Literal["customer", "system", "advocate"]
ROLES = get_args(Role)


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message; `template` is set on an advocate's message that was sent from a template."""

    role: str
    text: str
    template: str | None = None


class Case(msgspec.Struct, frozen=True):
    """One support conversation: its messages in order, none of them empty."""

    case_id: str
    messages: tuple[Message, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """A canned reply and its slot, the row of the head that scores it.

    Attributes:
        observed: whether the text is the most frequent reply seen with this id, because no list of templates has it.
        count: number of training examples.
    """

    slot: int
    id: str
    text: str
    active: bool
    observed: bool
    count: int


class RecordError(UserError):
    """A record is unusable.

    Attributes:
        reason: short name that quarantined records are counted by.
        detail: field and value that are wrong.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class LostRecordsError(RecordError):
    """An unknown number of records of a file cannot be read."""


def _kind(value: object) -> str:
    names: dict[type[object], str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value)) or ("a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError("wrong type", f"is {_kind(value)}; an object is allowed")
    return cast(dict[str, Any], value)


def _text(record: dict[str, Any], key: str) -> str:
    """Return the string at `key`; it must exist and have no lone surrogate, which has no UTF-8 form."""
    value = record.get(key)
    if not isinstance(value, str):
        if key not in record:
            raise RecordError("missing field", f"has no {key!r}")
        raise RecordError("wrong type", f"{key!r} is {_kind(value)}; a string is allowed")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RecordError("invalid text", f"{key!r} has a lone surrogate") from None
    return value


def _message(value: object, label: str) -> Message:
    record = _object(value)
    role, text = _text(record, "role"), _text(record, "text")
    if role not in ROLES:
        raise RecordError("unknown role", f"'role' is {role[:40]!r}; one of {', '.join(ROLES)} is allowed")
    labelled = role == "advocate" and record.get(label) is not None
    return Message(role, text, (_text(record, label) or None) if labelled else None)


def _messages(values: list[object], label: str) -> Iterator[Message]:
    i = 0
    try:
        for i, value in enumerate(values):  # noqa: B007 - the handler names it
            message = _message(value, label)
            if message.text.strip():
                yield message
    except RecordError as error:
        raise RecordError(error.reason, f"messages[{i}] {error.detail}") from None


def parse_case(record: object, label: str = "template") -> Case:
    """Return the case of one decoded JSON object, without blank messages; unknown keys are ignored.

    Args:
        record: `{"case_id", "messages": [{"role", "text", <label>?}, ...]}`.
        label: key of an advocate's message that names its template.

    Raises:
        RecordError: (a UserError) naming the field that is missing or wrong.
    """
    fields = _object(record)
    case_id = _text(fields, "case_id")
    if not case_id:
        raise RecordError("missing field", "'case_id' is empty")
    values = fields.get("messages")
    if not isinstance(values, list):
        if "messages" not in fields:
            raise RecordError("missing field", "has no 'messages'")
        raise RecordError("wrong type", f"'messages' is {_kind(values)}; a list is allowed")
    messages = tuple(_messages(cast(list[object], values), label))
    if not messages:
        raise RecordError("empty case", "no message has text")
    return Case(case_id, messages)


def parse_document(record: object) -> tuple[str, str]:
    """Return the id and text of one `{"id", "text"}` record.

    Raises:
        RecordError: (a UserError) naming the field that is missing or wrong.
    """
    fields = _object(record)
    name, text = _text(fields, "id"), _text(fields, "text")
    if not text.strip():
        raise RecordError("empty document", "'text' is blank")
    return name, text
