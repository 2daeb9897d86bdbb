"""Read cases and documents from files of records; bad records are quarantined with their file, line and reason.

Reading continues after a bad record. `Quarantine.check` fails when too many records are bad.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxtempl.errors import UserError
from jaxtempl.text import decoding
from jaxtempl.text.cases import Case, LostRecordsError, Message, RecordError, Redact, fill_texts
from jaxtempl.text.parquet_columns import DOCUMENT, Columns, case_columns
from jaxtempl.text.records import read_records
from jaxtempl.text.sources import RecordFile

Parsed = TypeVar("Parsed")
# A quoted value that was cut off may hold the beginning of one that redaction no longer recognises.
LONG_QUOTE = re.compile(r"(?:'[^']{30,}'|\"[^\"]{30,}\")")


class DigestSet:
    """A growing set of 16-byte digests that costs about 16 bytes each: a sorted array and a small set of recent ones.

    Recent digests are merged when they exceed 1/64 of all, so that Python objects stay a small part of the memory.
    """

    def __init__(self) -> None:
        self._sorted = np.empty(0, "S16")
        self._recent: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def add(self, digest: bytes) -> bool:
        """Add a digest; return whether it is new."""
        if digest in self._recent or self._in_sorted(digest):
            return False
        self._recent.add(digest)
        if len(self._recent) > max(4096, len(self._sorted) // 64):
            self._merge()
        return True

    def _in_sorted(self, digest: bytes) -> bool:
        # Compare bytes: numpy's S16 drops trailing zero bytes when an element is read.
        key = np.frombuffer(digest, "S16")
        index = int(np.searchsorted(self._sorted, key)[0])
        return index < len(self._sorted) and self._sorted[index : index + 1].tobytes() == digest

    def _merge(self) -> None:
        recent = np.sort(np.frombuffer(b"".join(self._recent), "S16"))
        self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, recent), recent)
        self._recent = set()


def digest_of(text: bytes) -> bytes:
    """Return the 16-byte digest by which texts are compared."""
    return hashlib.blake2b(text, digest_size=16).digest()


class Quarantine:
    """Bad records, counted, and written as JSON lines of `{"file", "line", "reason", "detail"}`.

    Attributes:
        good: number of good records.
        reasons: number of bad records by reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.good = 0
        self.reasons: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()  # of them, accepted losses of an unknown number of records
        self._first = ""
        path.touch()

    def add(self, file: str, line: int, error: RecordError) -> None:
        """Record a bad record by file and line; its text is not copied."""
        record = {"file": file, "line": line, "reason": error.reason, "detail": error.detail}
        with self.path.open("a") as out:
            out.write(json.dumps(record) + "\n")
        self.reasons[error.reason] += 1
        if isinstance(error, LostRecordsError):
            self._losses[error.reason] += 1
        else:
            self._first = self._first or f"{file} line {line}: {error}"

    def check(self, max_bad: float, listed: Path) -> None:
        """Raise UserError, naming the file `listed`, if more than the share `max_bad` of all records is bad.

        Accepted losses of an unknown number of records are listed, and do not count.
        """
        counted = self.reasons - self._losses
        bad = counted.total()
        if bad > max_bad * (bad + self.good):
            kinds = ", ".join(f"{count} {reason}" for reason, count in counted.most_common())
            raise UserError(
                f"{bad} of {bad + self.good} records are bad ({kinds}), more than max_bad={max_bad:g} allows; "
                f"the first is {self._first}; all are listed in {listed}"
            )


@dataclasses.dataclass
class CaseReader:
    """Reads cases and documents through one quarantine; a case_id may occur once over all files.

    Reading raises UserError where an unknown number of records is lost in a file that is not in `partial`.

    Attributes:
        partial: names of the files whose losses are accepted.
        texts: text by template id, for labelled messages without text.
        redact: redacts cases, documents and the details of bad records; None leaves them as they are.
        dropped_messages: number of blank unlabelled messages dropped so far.
        filled_labels: number of labelled messages so far that have their text from `texts`.
        labels_without_text: number of labelled messages so far that have no text.
    """

    quarantine: Quarantine
    label: str = "template"
    progress: Callable[[int], object] = lambda size: None
    partial: Collection[str] = ()
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    redact: Redact | None = None
    dropped_messages: int = 0
    filled_labels: int = 0
    labels_without_text: int = 0
    _seen: DigestSet = dataclasses.field(default_factory=DigestSet)

    def __post_init__(self) -> None:
        self._decode = decoding.CaseDecoder(self.label)

    def cases(self, files: Sequence[RecordFile]) -> Iterator[Case]:
        """Yield the good cases of all files, in order."""
        for case, dropped, logged_without_text in self._good(files, case_columns(self.label), self._case):
            without_text = sum(not message.text for message in case.messages)
            self.dropped_messages += dropped
            self.filled_labels += logged_without_text - without_text
            self.labels_without_text += without_text
            yield case

    def documents(self, files: Sequence[RecordFile]) -> Iterator[str]:
        """Yield the texts of the good documents of all files, in order."""
        return self._good(files, DOCUMENT, self._document)

    def _case(self, record: object) -> tuple[Case, int, int]:
        """Return a case, and its numbers of dropped messages and of labelled messages that were logged without text."""
        decoded, dropped = self._decode(record)
        case = fill_texts(decoded, self.texts)
        if not self._seen.add(digest_of(b"case " + case.case_id.encode())):
            raise RecordError("duplicate case_id", f"{case.case_id[:80]!r} came before")
        without_text = sum(not message.text for message in decoded.messages)
        if self.redact:
            case = Case(case.case_id, tuple(self.redact(case.messages, case.known_values)))
        return case, dropped, without_text

    def _document(self, record: object) -> str:
        name, text = decoding.decode_document(record)
        if not self._seen.add(digest_of(b"document " + name.encode())):
            raise RecordError("duplicate id", f"{name[:80]!r} came before")
        return self._redacted(text)

    def _redacted(self, text: str) -> str:
        return self.redact([Message("customer", text)], {})[0].text if self.redact else text

    def _redacted_detail(self, detail: str) -> str:
        return LONG_QUOTE.sub("'...'", self._redacted(detail)) if self.redact else detail

    def _good(
        self, files: Sequence[RecordFile], columns: Columns, parse: Callable[[object], Parsed]
    ) -> Iterator[Parsed]:
        for source in files:
            for line, record in read_records(source, columns, self.progress):
                try:
                    if isinstance(record, RecordError):
                        raise record
                    parsed = parse(record)
                except RecordError as error:
                    listed = type(error)(error.reason, self._redacted_detail(error.detail))
                    if isinstance(listed, LostRecordsError):
                        self._accept_loss(source, line, listed)
                    self.quarantine.add(source.name, line, listed)
                else:
                    self.quarantine.good += 1
                    yield parsed

    def _accept_loss(self, source: RecordFile, line: int, error: LostRecordsError) -> None:
        loss = f"{source.locate(line)}: {error}"
        if source.name not in self.partial:
            raise UserError(
                f"{source.name} cannot be read from {loss}; an unknown number of records is lost: give the whole file"
                ", or accept the loss with bin/prepare --allow_partial=FILE"
            )
        source.partial = source.partial or loss
