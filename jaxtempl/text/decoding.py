"""Decode records, lines of JSON or rows of Parquet, to cases and documents.

A valid line is decoded to typed structs in one pass, several times faster than `json` and checks in Python. Any other
line takes the slow path, which names what is wrong. A property test asserts that both give the same cases.
"""

import json
from typing import Any, cast

import msgspec

from jaxtempl.text.cases import (
    KNOWN_VALUES,
    Case,
    LostRecordsError,
    Message,
    RecordError,
    Role,
    known_values,
    make_message,
    parse_case,
    parse_document,
    template_id,
)


def json_value(record: object) -> object:
    """Return the JSON value of a record: a line is parsed, a Parquet row is returned as it is."""
    if not isinstance(record, bytes):
        return record
    try:
        value: object = json.loads(record.decode())
    except UnicodeDecodeError as error:
        raise RecordError("invalid UTF-8", f"byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        _refuse_several(record, error)
        raise RecordError("not JSON", str(error)[:200]) from None
    except (ValueError, RecursionError) as error:
        raise RecordError("not JSON", str(error)[:200]) from None
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        raise LostRecordsError("several records in a line", "a list; write each record on its own line")
    return value


def _refuse_several(line: bytes, error: json.JSONDecodeError) -> None:
    """Raise LostRecordsError if a line that is not JSON holds several records, so that more than one is lost."""
    if b"\r" in line.strip():
        raise LostRecordsError("several records in a line", "lines end in CR alone; end them in LF")
    if error.msg == "Extra data" and error.doc[error.pos] == "{":
        raise LostRecordsError("several records in a line", "a record follows without a line end between")


def _typed(label: str) -> "msgspec.json.Decoder[Any]":
    """Return a decoder of records whose messages name their template under `label`."""
    fields = [("role", Role), ("text", str | None, None), ("template", str | None, None)]
    message = msgspec.defstruct("Labelled", fields, rename={"template": label}, gc=False)
    record = [("case_id", str), ("messages", list[message]), (KNOWN_VALUES, Any, None)]
    return msgspec.json.Decoder(msgspec.defstruct("Record", record))


def _message(typed: Any) -> Message:
    """Return a decoded message; raise RecordError if the slow path must report it."""
    template = template_id(typed.template) if typed.role == "advocate" and typed.template is not None else None
    if typed.text is None and template is None:
        raise RecordError("missing field", "has no 'text'")
    return make_message(typed.role, typed.text or "", template)


class CaseDecoder:
    """Decodes records to cases.

    Args:
        label: key of an advocate's message that names its template; neither `role` nor `text`.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._typed = _typed(label)

    def __call__(self, record: object) -> tuple[Case, int]:
        """Return the case, and the number of blank unlabelled messages dropped from it.

        Args:
            record: a line of JSON as bytes, or a decoded value.

        Raises:
            RecordError: the record is not a case.
        """
        decoded = self._decode_typed(record) if isinstance(record, bytes) else None
        if decoded is not None:
            return decoded
        value = json_value(record)
        case = parse_case(value, self._label)
        return case, len(cast(dict[str, list[object]], value)["messages"]) - len(case.messages)

    def _decode_typed(self, line: bytes) -> tuple[Case, int] | None:
        """Return None if the line needs the slow path."""
        try:
            parsed = self._typed.decode(line.decode())  # as str: msgspec does not validate the UTF-8 of skipped text
            every = [_message(message) for message in parsed.messages]
            known = known_values(parsed.known_values)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, RecordError):
            return None
        messages = tuple(message for message in every if message.text or message.template)
        if not (messages and parsed.case_id):
            return None
        return Case(parsed.case_id, messages, known), len(parsed.messages) - len(messages)


def decode_document(record: object) -> tuple[str, str]:
    """Return the id and text of a document.

    Raises:
        RecordError: the record is not a document.
    """
    return parse_document(json_value(record))
