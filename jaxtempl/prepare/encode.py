"""Tokenization in parallel with reading: another thread encodes batches of texts."""

import itertools
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from jaxtempl.prepare.spool import DocumentStore
from jaxtempl.text.tokenizer import Tokenizer

TEXTS, CHARACTERS = 1024, 1 << 20  # bounds of one batch
AHEAD = 2  # maximum number of batches that wait while one is encoded; more would only cost memory


class Encoder:
    """Encodes texts in order into a store of documents, with an end-of-text after each.

    The tokenizers library releases the interpreter while it works, and uses all cores. Use the encoder in a `with`
    block: when the block ends, all texts are in the store.
    """

    def __init__(self, store: DocumentStore, tokenizer: Tokenizer) -> None:
        self._store, self._tokenizer = store, tokenizer
        self._executor = ThreadPoolExecutor(1)
        self._running: deque[Future[None]] = deque()
        self._texts: list[str] = []
        self._characters = 0

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._executor:
            if kind is None:
                self._submit()
                self._wait(0)

    def add(self, text: str) -> None:
        """Add one text; wait when the encoding thread is `AHEAD` batches behind."""
        self._texts.append(text)
        self._characters += len(text)
        if len(self._texts) >= TEXTS or self._characters >= CHARACTERS:
            self._submit()
            self._wait(AHEAD)

    def _submit(self) -> None:
        self._running.append(self._executor.submit(self._encode, self._texts))
        self._texts, self._characters = [], 0

    def _wait(self, pending: int) -> None:
        while len(self._running) > pending:
            self._running.popleft().result()

    def _encode(self, texts: list[str]) -> None:
        documents = self._tokenizer.encode(texts)
        for ids in documents:
            ids.append(self._tokenizer.end_of_text)
        lengths = np.array([len(ids) for ids in documents], np.int64)
        tokens = np.fromiter(itertools.chain.from_iterable(documents), np.uint16, int(lengths.sum()))
        self._store.append(tokens, lengths)
