"""The requests of a load test: contexts drawn from a file of cases, each ending before an advocate's reply."""

import heapq
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from jaxtyping import Int

from jaxtempl.errors import UserError
from jaxtempl.text import sources
from jaxtempl.text.cases import Case, with_text
from jaxtempl.text.ingest import CaseReader, Quarantine


class RequestContexts(NamedTuple):
    """The contexts of requests.

    Attributes:
        messages: JSON of each context, `{"messages": [...]}`.
        cases: number of cases read.
        bad: number of bad records by reason.
    """

    messages: list[bytes]
    cases: int
    bad: Mapping[str, int]


def draw_contexts(path: str, count: int, seed: int) -> RequestContexts:
    """Draw contexts uniformly from a whole file, without replacement.

    Args:
        path: file, folder or URL of cases.
        count: number of contexts; all of them if there are fewer.
        seed: seed of the draw.

    Raises:
        UserError: no file matches, or no case has an advocate's reply.
    """
    with tempfile.TemporaryDirectory() as folder:  # only the counts of bad records are kept
        quarantine = Quarantine(Path(folder) / "bad.jsonl")
        # The contexts with the smallest random keys are a uniform sample in random order, found in one pass.
        generator = random.Random(seed)
        keyed = ((generator.random(), i, *context) for i, context in enumerate(_all(CaseReader(quarantine), path)))
        drawn = heapq.nsmallest(count, keyed)
    if not drawn:
        raise UserError(
            f"{path} has no context to request suggestions for ({quarantine.good} good and "
            f"{quarantine.reasons.total()} bad records); name a file of cases in which an advocate replies to a message"
        )
    messages = [_json(case, end) for _, _, case, end in drawn]
    return RequestContexts(messages, quarantine.good, dict(quarantine.reasons))


def _all(reader: CaseReader, path: str) -> Iterator[tuple[Case, int]]:
    """Yield each reply of an advocate to a text as its case and the number of messages before it."""
    for case in reader.cases(sources.find_files(path)):
        for end, message in enumerate(case.messages):
            if message.role == "advocate" and with_text(case.messages[:end]):
                yield case, end


def _json(case: Case, end: int) -> bytes:
    return msgspec.json.encode({"messages": [{"role": m.role, "text": m.text} for m in with_text(case.messages[:end])]})


def draw_order(contexts: int, requests: int, rng: np.random.Generator) -> Int[np.ndarray, " N"]:
    """Return the context of each request: drawn without replacement if there are enough contexts, else with it."""
    return rng.permutation(contexts)[:requests] if requests <= contexts else rng.integers(contexts, size=requests)


def request_bodies(contexts: RequestContexts, chosen: Int[np.ndarray, " N"], name: str) -> Iterator[bytes]:
    """Yield the body of each request, each with its own case_id: a server drops the older of two requests of a case.

    Bodies are built on demand, in a microsecond each, so that memory does not grow with the number of requests.
    """
    for i, context in enumerate(chosen.tolist()):
        yield b'{"case_id":"%b-%d",%b' % (name.encode(), i, contexts.messages[context][1:])
