"""Shared by both makers: clean text, a split by hash, and files that come out the same byte for byte every time."""

import argparse
import gzip
import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

DEV = TEST = 0.1  # shares of the cases; the rest is train
SALT = "v1"  # part of the hash, so that the split stays what the published figures were measured on

Message = dict[str, Any]
Case = dict[str, Any]

_SPACE = re.compile(r"\s+")


def clean(text: str | None) -> str:
    """One space for any run of white space; zero-width spaces go."""
    return _SPACE.sub(" ", (text or "").replace("\u200b", "")).strip()


def message(role: str, text: str | None, template: str | None = None, template2: str | None = None) -> Message:
    """One message of the transcript format; only advocates' messages have a template, null for free text."""
    made: Message = {"role": role, "text": clean(text)}
    if role == "advocate":
        made["template"] = template
    if template2 is not None:
        made["template2"] = template2
    return made


def split_of(case_id: str) -> str:
    """`train`, `dev` or `test`, by the hash of the case_id alone."""
    place = int(hashlib.sha256((SALT + case_id).encode()).hexdigest()[:12], 16) / 16**12
    if place < TEST:
        return "test"
    return "dev" if place < TEST + DEV else "train"


def save(folder: Path, cases: Iterable[Case], split_of: Callable[[Case], str]) -> None:
    """Writes `<split>.jsonl.gz` for each split and prints how many cases went where."""
    parts: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        parts[split_of(case)].append(case)
    folder.mkdir(parents=True, exist_ok=True)
    for split, some in sorted(parts.items()):
        _write(folder / f"{split}.jsonl.gz", some)
        print(f"{folder / split}: {len(some)} cases")


def _write(path: Path, cases: list[Case]) -> None:
    # no name and no time in the header, so that equal cases make an equal file
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8") as text,
    ):
        for case in cases:
            text.write(json.dumps(case, ensure_ascii=False, separators=(",", ":")) + "\n")


def arguments(description: str) -> argparse.Namespace:
    """`--source` and `--out` as paths; `--source` must be a folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="the repository's checkout")
    parser.add_argument("--out", type=Path, required=True, help="folder for the transcripts")
    given = parser.parse_args()
    if not given.source.is_dir():
        parser.error(f"--source={given.source} is no folder; give the repository's checkout")
    return given
