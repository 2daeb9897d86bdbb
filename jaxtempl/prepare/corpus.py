"""The first pass: read transcripts and documents once, write the cases, and collect what the second pass needs."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
from jaxtyping import Bool, Shaped

from jaxtempl.prepare.encode import Encoder
from jaxtempl.prepare.labels import LabelCollector
from jaxtempl.prepare.split import SPLITS, VALIDATION, hash_fraction, is_allowed, split_of
from jaxtempl.prepare.spool import SpoolFolder
from jaxtempl.prepare.tfds_builders import SplitExamples
from jaxtempl.text.cases import Case
from jaxtempl.text.formats import document
from jaxtempl.text.ingest import CaseReader, digest_of
from jaxtempl.text.sources import RecordFile
from jaxtempl.text.tokenizer import Tokenizer

InputFiles = Mapping[str, Sequence[RecordFile]]  # by the flag that names them


class CorpusReader:
    """Reads the inputs, and collects labels, tokens and digests in a spool folder.

    Attributes:
        folder: the spool folder.
        labels: collector of labels and templates.
        documents: tokenized phase-1 texts of the two splits that have rows.
        sizes: bytes of each of those texts.
        digests: digest of the phase-1 text of every case and document, by split.
        ids: digest of every case_id, by split.
        counts: numbers of cases, messages and documents, by split.
    """

    def __init__(self, spool: SpoolFolder, labels: LabelCollector) -> None:
        self.labels, self.folder = labels, spool.folder
        self.documents = {split: spool.documents(f"documents.{split}") for split in ("train", "validation")}
        self.sizes = {split: spool.column(f"sizes.{split}", "<i8") for split in self.documents}
        self.digests = {split: spool.column(f"digests.{split}", "S16") for split in SPLITS}
        self.ids = {split: spool.column(f"ids.{split}", "S16") for split in SPLITS}
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in ("cases", "messages", "documents")}

    def read(
        self, inputs: InputFiles, reader: CaseReader, tokenizer: Tokenizer, fractions: Sequence[float]
    ) -> SplitExamples:
        """Read all inputs once, tokenizing meanwhile; yield the split and the TFDS example of each case."""
        with contextlib.ExitStack() as stack:
            stores = self.documents.items()
            encoders = {split: stack.enter_context(Encoder(store, tokenizer)) for split, store in stores}
            for split, case in _with_splits(inputs, reader, fractions):
                self._add_case(split, case)
                self._add_text(split, document(case.messages), encoders)
                messages = [(message.role, message.text, message.template) for message in case.messages]
                yield split, {"case_id": case.case_id.encode(), "messages": msgspec.json.encode(messages)}
            for text in reader.documents(inputs["documents"]):
                split = "validation" if hash_fraction(text) < VALIDATION else "train"
                self.counts["documents"][split] += 1
                self._add_text(split, text, encoders)

    def held_out(self) -> Shaped[np.ndarray, " held_out"]:
        """Return the digests of the texts of validation and test."""
        return np.concatenate([self.digests["validation"].read(), self.digests["test"].read()])

    def is_copied(self) -> Bool[np.ndarray, " train"]:
        """Return a mask of the training texts, cases before documents, that equal a held-out text."""
        return ~is_allowed(self.digests["train"].read(), self.held_out())

    def _add_case(self, split: str, case: Case) -> None:
        self.labels.add(split, self.counts["cases"][split], case)
        self.counts["cases"][split] += 1
        self.counts["messages"][split] += len(case.messages)
        self.ids[split].append(digest_of(case.case_id.encode()))

    def _add_text(self, split: str, text: str, encoders: Mapping[str, Encoder]) -> None:
        raw = text.encode()
        self.digests[split].append(digest_of(raw))
        if split in encoders:
            self.sizes[split].append(len(raw).to_bytes(8, "little"))
            encoders[split].add(text)


def _with_splits(inputs: InputFiles, reader: CaseReader, fractions: Sequence[float]) -> Iterator[tuple[str, Case]]:
    """Yield cases with their split, by hash or as given; training cases without validation lend 2 % to it, by hash."""
    for case in reader.cases(inputs["transcripts"]):
        yield split_of(case.case_id, fractions), case
    lent = VALIDATION if not inputs["validation"] else 0.0
    for case in reader.cases(inputs["train"]):
        yield ("validation" if hash_fraction(case.case_id) < lent else "train"), case
    for split in ("validation", "test"):
        for case in reader.cases(inputs[split]):
            yield split, case
