"""Cases that a user names on the command line: one JSON case, or a file of cases in which none may be wrong.

`text.ingest` reads the transcripts of a dataset, where bad records are quarantined instead.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtempl import files
from jaxtempl.errors import UserError
from jaxtempl.text import decoding, records, sources
from jaxtempl.text.cases import Case, RecordError, fill_texts, parse_case
from jaxtempl.text.parquet_columns import case_columns

STANDARD_INPUT = "-"


def read_case(path: Path) -> Case:
    """Read the case of a JSON file, or of standard input for `-`; `case_id` is optional.

    Raises:
        UserError: the file is missing, is not JSON, or is not a case.
    """
    piped = str(path) == STANDARD_INPUT
    value = _read_standard_input() if piped else files.read_json(path)
    try:
        return fill_texts(parse_case(_with_id(value, "case")), {})
    except UserError as error:
        name = "standard input" if piped else path
        raise UserError(f'{name}: {error}; a case is {{"messages": [{{"role", "text"}}, ...]}}') from None


def read_cases(path: str) -> Iterator[Case]:
    """Read the cases of a file, folder, glob or URL in order; `case_id` is optional.

    Raises:
        UserError: there is no such file, or a record is not a case; the message names its line.
    """
    for source in sources.find_files(path):
        for line, record in records.read_records(source, case_columns("template")):
            try:
                yield _case(record, f"{source.name}:{line}")
            except RecordError as error:
                raise UserError(f"{source.name} line {line} is not a case: {error}; correct or remove it") from None


def _case(record: object, case_id: str) -> Case:
    if isinstance(record, RecordError):
        raise record
    return fill_texts(parse_case(_with_id(decoding.json_value(record), case_id)), {})


def _with_id(value: object, case_id: str) -> object:
    return {"case_id": case_id, **value} if isinstance(value, dict) else value


def _read_standard_input() -> Any:
    try:
        return json.loads(sys.stdin.read().removeprefix("\ufeff"))  # a byte order mark
    except ValueError as error:
        raise UserError(f"standard input is not JSON: {error}; pass one case") from None
