"""Records as they were read, a line of JSON or a row of Parquet, to cases and documents.

A line that is in order becomes a case in one typed decoding, several times faster than json and checks in Python; any
other goes the long way, which says what is wrong with it. Both come to the same (a property test holds them to it).
"""

import json
from typing import Any, cast

import msgspec

from jaxtempl.text.cases import Case, Message, RecordError, Role, parse_case, parse_document


def json_value(record: object) -> object:
    """The JSON value of a line; a row is one already."""
    if not isinstance(record, bytes):
        return record
    try:
        return json.loads(record.decode())
    except UnicodeDecodeError as error:
        raise RecordError("invalid UTF-8", f"byte {error.start} of the line") from None
    except (ValueError, RecursionError) as error:
        raise RecordError("not JSON", str(error)[:200]) from None


def _typed(label: str) -> "msgspec.json.Decoder[Any]":
    """Decodes a record whose messages name their template under `label`."""
    fields = [("role", Role), ("text", str), ("template", str | None, None)]
    message = msgspec.defstruct("Labelled", fields, rename={"template": label}, gc=False)
    return msgspec.json.Decoder(msgspec.defstruct("Record", [("case_id", str), ("messages", list[message])]))


class CaseDecoder:
    """Decodes cases.

    Args:
        label: the key of an advocate's message that names its template; neither `role` nor `text`.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._typed = _typed(label)

    def __call__(self, record: object) -> tuple[Case, int]:
        """The case, and how many of its messages were empty after strip and so dropped.

        Args:
            record: a line of JSON as bytes, or a decoded value.

        Raises:
            RecordError: saying what is wrong.
        """
        at_once = self._at_once(record) if isinstance(record, bytes) else None
        if at_once is not None:
            return at_once
        value = json_value(record)
        case = parse_case(value, self._label)
        return case, len(cast(dict[str, list[object]], value)["messages"]) - len(case.messages)

    def _at_once(self, line: bytes) -> tuple[Case, int] | None:
        """None when something is odd."""
        try:
            found = self._typed.decode(line.decode())  # as str, for msgspec does not look at text that it skips
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        messages = tuple(
            Message(said.role, said.text, (said.template or None) if said.role == "advocate" else None)
            for said in found.messages
            if said.text.strip()
        )
        if not (messages and found.case_id):
            return None
        return Case(found.case_id, messages), len(found.messages) - len(messages)


def decode_document(record: object) -> tuple[str, str]:
    """Id and text of a document.

    Raises:
        RecordError: saying what is wrong.
    """
    return parse_document(json_value(record))
