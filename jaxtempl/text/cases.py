"""Cases, messages and templates, and how a decoded record is checked and becomes one."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import msgspec

from jaxtempl.errors import UserError

Role = Literal["customer", "system", "advocate"]
ROLES = get_args(Role)

# Ids go into the event store, so they are short and printable (PostgreSQL cannot store NUL).
ID_LIMIT = 200  # characters
CONTROL = r"\x00-\x1f\x7f"  # characters of no id, as the inside of a character class
_CONTROL = re.compile(f"[{CONTROL}]")

KNOWN_VALUES = "known_values"  # key of a case's record
_KNOWN_TYPE = re.compile("[A-Za-z][A-Za-z_]*")


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message; `template` is set on an advocate's message that was sent from a template.

    Exports often log a template's id and no text: `text` is empty on such a message alone. It is a label, but stands in
    no row and no window.
    """

    role: str
    text: str
    template: str | None = None


KnownValues = Mapping[str, Sequence[str]]  # values of a customer, by the type that their placeholder names


# Returns the messages of a case with placeholders instead of values; text.redaction has the one that policies make.
Redact = Callable[[Sequence[Message], KnownValues], Sequence[Message]]


class Case(msgspec.Struct, frozen=True):
    """One support conversation: its messages in order, each with a text or a template.

    Attributes:
        known_values: Values of the customer, which redaction replaces and nothing else reads.
    """

    case_id: str
    messages: tuple[Message, ...]
    known_values: KnownValues = {}


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


def template_id(value: str) -> str | None:
    """Return a template's id as every part keeps it, without surrounding whitespace; a blank one is none.

    Raises:
        RecordError: (a UserError) the event store cannot keep the id.
    """
    name = value.strip()
    if len(name) > ID_LIMIT or _CONTROL.search(name):
        raise RecordError(
            "invalid template id",
            f"{name[:40]!r} ({len(name)} characters); at most {ID_LIMIT} characters, none of them a control character, "
            "are allowed: rename it",
        )
    return name or None


def _message(value: object, label: str) -> Message:
    record = _object(value)
    role = _text(record, "role")
    if role not in ROLES:
        raise RecordError("unknown role", f"'role' is {role[:40]!r}; one of {', '.join(ROLES)} is allowed")
    is_labelled = role == "advocate" and record.get(label) is not None
    template = template_id(_text(record, label)) if is_labelled else None
    has_text = template is None or record.get("text") is not None
    return make_message(role, _text(record, "text") if has_text else "", template)


def make_message(role: str, text: str, template: str | None) -> Message:
    """Return a message whose blank text is empty."""
    return Message(role, text if text.strip() else "", template)


def _messages(values: list[object], label: str) -> Iterator[Message]:
    i = 0
    try:
        for i, value in enumerate(values):  # noqa: B007 - the handler names it
            message = _message(value, label)
            if message.text or message.template:
                yield message
    except RecordError as error:
        raise RecordError(error.reason, f"messages[{i}] {error.detail}") from None


def parse_case(record: object, label: str = "template") -> Case:
    """Return the case of one decoded JSON object, without blank unlabelled messages; unknown keys are ignored.

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
    return Case(case_id, messages, known_values(fields.get(KNOWN_VALUES)))


def known_values(value: object) -> KnownValues:
    """Return the known values of a record by type.

    Args:
        value: `{"name": "Anna Schmidt", "phone": ["...", "..."]}`; values may be null, and pairs come from Parquet.

    Raises:
        RecordError: (a UserError) it has another form; no value is in the message.
    """
    pairs = value.items() if isinstance(value, dict) else value or ()
    known = dict[str, list[str]]()
    try:
        for key, given in cast(Iterable[tuple[str, object]], pairs):
            listed = [given] if isinstance(given, str) else given or []
            known[_known_type(key)] = [_string(each) for each in cast(Iterable[object], listed)]
    except (TypeError, ValueError):
        allowed = '{"type": "value"} or {"type": ["value", ...]}, types of letters and underscores'
        raise RecordError("wrong type", f"{KNOWN_VALUES!r} has another form than {allowed}") from None
    return known


def _known_type(key: str) -> str:
    if not _KNOWN_TYPE.fullmatch(key):
        raise ValueError
    return key.upper()


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def fill_texts(case: Case, texts: Mapping[str, str]) -> Case:
    """Return the case with the text of its template on each labelled message without text.

    Args:
        case: a case.
        texts: text by template id; a message whose template has none stays without text.

    Raises:
        RecordError: (a UserError) no message has text.
    """
    if all(message.text for message in case.messages):
        return case
    filled = tuple(m if m.text else Message(m.role, texts.get(m.template or "", ""), m.template) for m in case.messages)
    if not any(message.text for message in filled):
        raise RecordError("empty case", "no message has text")
    return msgspec.structs.replace(case, messages=filled)


def with_text(messages: Iterable[Message]) -> list[Message]:
    """Return the messages that rows and windows hold: all except labels without text."""
    return [message for message in messages if message.text]


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
