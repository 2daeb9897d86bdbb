"""Make the package's sample: 1,500 of STAR's training cases with its templates, in jaxtempl/assets/star.

    python -m bench.data.sample --source=DATA/star --out=jaxtempl/assets/star

DATA/star is the folder that `bench.data.star` writes. The cases are those with the lowest seeded hashes of their
case_id; the dev and test cases remain benchmarks. A repeated run writes the same bytes.
"""

import gzip
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.data.common import Case, Message, arguments, save

CASES = 1_500
SALT = "sample-0"


def rank(case_id: str) -> str:
    """Return the seeded hash that orders the cases."""
    return hashlib.sha256((SALT + case_id).encode()).hexdigest()


def choose(cases: Iterable[Case]) -> list[Case]:
    """Return the first CASES cases in the order of `rank`, without their metadata."""
    chosen = sorted(cases, key=lambda case: rank(case["case_id"]))[:CASES]
    return [{"case_id": case["case_id"], "messages": [_strip(m) for m in case["messages"]]} for case in chosen]


def _strip(message: Message) -> Message:
    """Return a message's role and text, and its template if it has one."""
    return {key: message[key] for key in ("role", "text", "template") if message.get(key) is not None}


def _read(path: Path) -> Iterator[Case]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


if __name__ == "__main__":
    given = arguments(__doc__ or "")
    save(given.out, choose(_read(given.source / "train.jsonl.gz")), lambda _: "transcripts")
    shutil.copyfile(given.source / "templates.json", given.out / "templates.json")
