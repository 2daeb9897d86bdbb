"""What is said over HTTP: requests as they are checked, answers as they are written. No JAX.

A field that is wrong is named, and never what stood in it: no word of a message leaves by an error.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from jaxtempl.text.cases import Role

# Ids are kept in the event store, so they are short and of printing characters (PostgreSQL knows no NUL).
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]
Folder = Annotated[
    str, msgspec.Meta(max_length=4000, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")
]  # errors and the log name it
EventName = Literal["shown", "picked", "edited", "dismissed", "searched", "freehand"]


class RequestMessage(msgspec.Struct, frozen=True, gc=False):
    """One message of a case."""

    role: Role
    text: str


class SuggestInput(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the model: messages, oldest first, and which suggestions are wanted.

    Attributes:
        messages: those whose text is blank are left out, as in training.
        advocate_id: who is to see the suggestions; kept with them.
        k: how many suggestions.
        allowed: ids of the templates that may be suggested (default: all active ones).
        threshold: probability of the best one below which nothing is suggested.
    """

    messages: Annotated[list[RequestMessage], msgspec.Meta(min_length=1)]
    advocate_id: Id | None = None
    k: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    allowed: list[str] | None = None
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class ContextRequest(SuggestInput, frozen=True, kw_only=True):
    """An element of KServe's input `case`; without a case_id it supersedes nothing."""

    case_id: Id | None = None


class SuggestRequest(SuggestInput, frozen=True, kw_only=True):
    """POST /v1/suggest: a newer request of a case supersedes the one that waits."""

    case_id: Id


class Suggested(msgspec.Struct, frozen=True):
    """One template with its probability among those that may be suggested."""

    template: str
    text: str
    probability: float


class SuggestAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is suggested, best first.

    Attributes:
        suggestion_id: to be named in events.
        no_suggestion: why there is none, in words; left out where there is one.
        model_version: of the bundle.
        tokens: of the window that was read.
        dropped_messages: messages older than the window.
        latency_ms: from the request's last byte to the answer.
    """

    suggestion_id: str
    suggestions: list[Suggested]
    model_version: str
    tokens: int
    dropped_messages: int
    latency_ms: float
    no_suggestion: str | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/events: what an advocate did with suggestions. The same one twice is one.

    Attributes:
        event: shown: they were on the screen; picked: one was put into the reply; edited: and changed before it was
            sent; dismissed: all were put away; searched: a template was taken from the search instead; freehand: the
            reply was written without one.
        template: id of the one picked, edited or searched.
        position: place of it among the suggestions, from 1.
        at: when it happened, with its time zone.
    """

    suggestion_id: Annotated[str, msgspec.Meta(min_length=32, max_length=32, pattern="^[0-9a-f]{32}$")]
    event: EventName
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    template: Id | None = None
    position: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None


class Reload(msgspec.Struct, frozen=True):
    """POST /admin/reload: the folder of the next bundle on the server's disk (default: the one of now, read anew)."""

    bundle: Folder | None = None


class ModelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/model: what serves.

    Attributes:
        version: of the bundle.
        size: of the run that it came from, one of configs/sizes/, or empty.
        dtype: of the weights.
        backend: what runs it.
        window: most tokens that it reads.
        buckets: lengths that windows are padded to.
        slots: columns of its head.
        templates: that may be suggested.
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
    """GET /v1/templates: one of those that the model knows; retired ones are not active, and never suggested."""

    id: str
    text: str
    active: bool


class ErrorAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Any answer of 400 and above: one line, the field that is meant, and the request's id, which the log has too."""

    error: str
    field: str | None = None
    request_id: str | None = None


class FieldError(Exception):
    """A request that is not as it must be; `field` is the path of what is wrong, like `messages[3].role`."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field, self.detail = field, detail


RequestT = TypeVar("RequestT", bound=msgspec.Struct)
_decoders: dict[type[Any], "msgspec.json.Decoder[Any]"] = {}


def decode(kind: type[RequestT], body: bytes) -> RequestT:
    """A request out of JSON; keys that it does not know are ignored.

    Raises:
        FieldError: it is not JSON (the field is then empty), or a field is missing or wrong.
    """
    decoder = _decoders.get(kind) or _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    try:
        return decoder.decode(body.decode())  # as str, for msgspec does not look at text that it skips
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").lstrip(".")
        missing = re.search(r"missing required field `(\w+)`", detail)
        field = f"{field}.{missing[1]}".lstrip(".") if missing else field
        raise FieldError(field, _without_values(detail)) from None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise FieldError("", "is not JSON in UTF-8") from None


def _without_values(detail: str) -> str:
    """The library's words without what stood in the field."""
    detail = re.sub(r"^Invalid enum value .*", "Is none of the allowed values", detail, flags=re.DOTALL)
    return re.sub(r"^Expected `str` matching regex .*", "Has characters that are not allowed", detail)
