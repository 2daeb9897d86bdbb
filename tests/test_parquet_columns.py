"""Parquet columns that are not needed are never decoded: Python may not hold their values."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxtempl.config.paths import ROOT
from jaxtempl.text.cases import Case, Message
from jaxtempl.text.ingest import CaseReader, Quarantine
from jaxtempl.text.parquet_columns import DOCUMENT, case_columns, choose_paths
from jaxtempl.text.sources import find_files

NANOSECONDS = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))  # only pandas can hold the last three digits
UNREADABLE: dict[str, Any] = {
    "nanoseconds": NANOSECONDS,
    "time zone": NANOSECONDS.cast(pa.timestamp("ns", "US/Nowhere")),
    "late date": pa.array([2**31 - 1], pa.date32()),
    "invalid UTF-8": pa.array([b"\xff\xfe"], pa.binary()).view(pa.string()),
}


def write(path: Path, unreadable: Any, label: str = "template") -> Path:
    """Write one case with an unreadable value in a column and in its message."""
    fields = {"role": "advocate", "text": "Hello!", label: "greet"}
    message = pa.StructArray.from_arrays(
        [*(pa.array([value]) for value in fields.values()), unreadable], [*fields, "sent"]
    )
    messages = pa.ListArray.from_arrays([0, 1], message)
    table = pa.table({"case_id": pa.array(["a"]), "messages": messages, "created": unreadable})
    pyarrow.parquet.write_table(table, path)
    return path


def read(path: Path, label: str) -> tuple[list[Case], dict[str, int]]:
    quarantine = Quarantine(path.with_suffix(".quarantine"))
    return list(CaseReader(quarantine, label).cases(find_files(str(path)))), dict(quarantine.reasons)


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("label", ["template", "reply.id"])
def test_an_unreadable_value_in_an_unused_column_loses_no_case(tmp_path: Path, kind: str, label: str) -> None:
    cases, bad = read(write(tmp_path / "in.parquet", UNREADABLE[kind], label), label)
    assert cases == [Case("a", (Message("advocate", "Hello!", "greet"),))]
    assert not bad


def test_parquet_is_read_without_pandas(tmp_path: Path) -> None:
    """A serving machine has no pandas: another process, in which it cannot be imported, reads the file."""
    write(tmp_path / "in.parquet", NANOSECONDS)
    program = (
        "import sys; sys.modules['pandas'] = None\n"
        "from jaxtempl.text.case_files import read_cases\n"
        "print([case.messages[0].text for case in read_cases('in.parquet')])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("['Hello!']\n", "")


THREE_LEVELS = ["case_id", *(f"messages.list.element.{name}" for name in ("role", "text", "template", "at", "role2"))]


@pytest.mark.parametrize(
    ("leaves", "expected"),
    [
        (THREE_LEVELS, THREE_LEVELS[:4]),
        (["messages.array.text", "messages.array.at", "other.text"], ["messages.array.text"]),
        (["case_id", "case_id2", "messages"], ["case_id", "messages"]),
        (["case_id", "messages.role", "messages.text"], ["case_id", "messages.role", "messages.text"]),
        (["id", "other"], ["id", "other"]),
    ],
    ids=["three levels", "two levels", "text", "no list", "none of them"],
)
def test_the_needed_leaves_are_chosen(leaves: list[str], expected: list[str]) -> None:
    assert choose_paths(leaves, case_columns("template")) == expected


def test_documents_need_their_id_and_text() -> None:
    assert choose_paths(["id", "text", "at"], DOCUMENT) == ["id", "text"]
