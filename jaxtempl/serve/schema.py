"""Schemas of HTTP requests and answers. No JAX.

An error names the invalid field and never its value, so that no text of a message appears in an error.
"""

import contextlib
import json
import re
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from jaxtempl.text.cases import CONTROL, ID_LIMIT, Message, Role

# Ids go into the event store, so they are short and printable (PostgreSQL cannot store NUL).
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_LIMIT, pattern=rf"^[^{CONTROL}]+$(?!\n)")]
# `text.cases.template_id` strips it, and a blank one is none.
TemplateId = Annotated[str, msgspec.Meta(max_length=ID_LIMIT, pattern=rf"^\s*[^{CONTROL}]*\s*$")]
Folder = Annotated[
    str, msgspec.Meta(max_length=4000, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")
]  # errors and the log name it
KnownType = Annotated[str, msgspec.Meta(max_length=40, pattern="^[A-Za-z][A-Za-z_]*$(?!\\n)")]
EventName = Literal["opened", "shown", "picked", "edited", "dismissed", "searched", "freehand"]


class RequestMessage(msgspec.Struct, frozen=True, gc=False):
    """One message of a case."""

    role: Role
    text: str


class SuggestInput(msgspec.Struct, frozen=True, kw_only=True):
    """The model's input: messages, oldest first, and options of the suggestions.

    Attributes:
        messages: Messages of the case; blank ones are left out, as in training.
        known_values: Values of the customer by type, which a model of redacted data reads as placeholders; not stored.
        advocate_id: Advocate who sees the suggestions; stored with them.
        k: Maximum number of suggestions.
        allowed: Ids of the templates that may be suggested (default: all active ones).
        threshold: Minimum probability of the best suggestion; below it nothing is suggested.
    """

    messages: Annotated[list[RequestMessage], msgspec.Meta(min_length=1)]
    known_values: dict[KnownType, str | list[str]] | None = None
    advocate_id: Id | None = None
    k: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    allowed: list[str] | None = None
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None

    def with_text(self) -> list[Message]:
        """Return the messages that have text."""
        return [Message(message.role, message.text) for message in self.messages if message.text.strip()]


class ContextRequest(SuggestInput, frozen=True, kw_only=True):
    """An element of KServe's input `case`; without a case_id it supersedes no other request."""

    case_id: Id | None = None


class SuggestRequest(SuggestInput, frozen=True, kw_only=True):
    """POST /v1/suggest: a newer request of a case supersedes one that still waits."""

    case_id: Id


class Suggested(msgspec.Struct, frozen=True):
    """One template with its probability among those that may be suggested."""

    template: str
    text: str
    probability: float


class SuggestAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Suggestions, best first.

    Attributes:
        suggestion_id: Id of this answer, which events refer to.
        no_suggestion: Reason for an empty list, `holdout` if the pair is held out; absent otherwise.
        model_version: Version of the bundle.
        tokens: Tokens of the window that the model read.
        dropped_messages: Number of messages older than the window.
        latency_ms: Milliseconds from the request's last byte to the answer.
    """

    suggestion_id: str
    suggestions: list[Suggested]
    model_version: str
    tokens: int
    dropped_messages: int
    latency_ms: float
    no_suggestion: str | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/events: an advocate's action on suggestions. Repeating an event is safe: it is stored once.

    Attributes:
        event: opened: the reply box was opened, which starts the clock in every arm; shown: the suggestions were on the
            screen; picked: one was put into the reply; edited: it was changed before it was sent; dismissed: all were
            dismissed; searched: a template was taken from the search instead; freehand: the reply was written without
            a template.
        template: Id of the template that was picked, edited or searched, stored without surrounding whitespace.
        position: Position of the template among the suggestions, from 1.
        at: Time of the action, with its time zone.
    """

    suggestion_id: Annotated[str, msgspec.Meta(min_length=32, max_length=32, pattern="^[0-9a-f]{32}$")]
    event: EventName
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    template: TemplateId | None = None
    position: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None


class Reload(msgspec.Struct, frozen=True):
    """POST /admin/reload: what serves next; what is left out is the current one, read again from the server's disk.

    Attributes:
        bundle: Folder of the production bundle.
        experiments: File of experiments.
    """

    bundle: Folder | None = None
    experiments: Folder | None = None


class ModelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/model: the model that serves.

    Attributes:
        version: Version of the bundle.
        size: Size of the run that it came from, one of configs/sizes/, or empty.
        dtype: Type of the weights.
        backend: Runtime of the network.
        window: Maximum number of tokens that it reads.
        buckets: Lengths that windows are padded to.
        slots: Columns of its head.
        templates: Number of templates that may be suggested.
    """

    version: str
    size: str
    dtype: str
    backend: str
    window: int
    buckets: list[int]
    slots: int
    templates: int


class TemplateAnswer(msgspec.Struct, frozen=True):
    """GET /v1/templates: a template of the model; retired ones are not active, and never suggested."""

    id: str
    text: str
    active: bool


class ErrorAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Any answer with a status of 400 or above: one line, the invalid field, and the request's id, as in the log."""

    error: str
    field: str | None = None
    request_id: str | None = None


class FieldError(Exception):
    """An invalid request; `field` is the path of the invalid field, like `messages[3].role`."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field, self.detail = field, detail


RequestT = TypeVar("RequestT", bound=msgspec.Struct)
_decoders: dict[type[Any], "msgspec.json.Decoder[Any]"] = {}


def decode(kind: type[RequestT], body: bytes) -> RequestT:
    """Decode and check a request in JSON; unknown keys are ignored.

    Raises:
        FieldError: The body is not JSON (the field is then empty), or a field is missing or invalid.
    """
    decoder = _decoders.get(kind) or _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    try:
        # As str: msgspec does not check the encoding of text that it skips, and takes no byte order mark.
        return decoder.decode(body.decode("utf-8-sig"))
    except msgspec.ValidationError as error:
        detail, _, path = str(error).replace("`key` in ", "").partition(" - at `$")
        field = path.rstrip("`").lstrip(".").partition("[...]")[0]  # msgspec does not name a dictionary's value
        missing = re.search(r"missing required field `(\w+)`", detail)
        field = f"{field}.{missing[1]}".lstrip(".") if missing else field
        raise FieldError(field, _without_values(detail)) from None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _not_json(body) from None


def _not_json(body: bytes) -> FieldError:
    """Return the error of a body that msgspec cannot decode.

    JSON allows half of a surrogate pair, which clients send when they cut a text within a character.
    """
    with contextlib.suppress(ValueError, RecursionError):
        field = _surrogate_field(json.loads(body.decode("utf-8-sig", "surrogatepass")), "")
        if field is not None:
            return FieldError(field, "has half of a surrogate pair; cut texts between characters")
    return FieldError("", "is not JSON in UTF-8")


def _surrogate_field(value: Any, path: str) -> str | None:
    """Return the path of the first text with a lone surrogate; keys that may be text are left out of the path."""
    if isinstance(value, str):
        return path if re.search("[\ud800-\udfff]", value) else None
    inner: list[tuple[str, Any]] = []
    if isinstance(value, list):
        inner = [(f"{path}[{index}]", each) for index, each in enumerate(value)]
    if isinstance(value, dict):
        named = {key: f"{path}.{key}".lstrip(".") if key.isidentifier() else path for key in value}
        inner = [(path, key) for key in value] + [(named[key], each) for key, each in value.items()]
    return next((found for name, each in inner if (found := _surrogate_field(each, name)) is not None), None)


def _without_values(detail: str) -> str:
    """Return the library's message without the field's value."""
    detail = re.sub(r"^Invalid enum value .*", "Is none of the allowed values", detail, flags=re.DOTALL)
    return re.sub(r"^Expected `str` matching regex .*", "Has characters that are not allowed", detail)
