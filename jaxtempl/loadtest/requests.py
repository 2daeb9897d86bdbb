"""What is asked: contexts drawn from a file of cases, each ending where an advocate answers, as bytes of JSON."""

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
from jaxtempl.text import records
from jaxtempl.text.cases import Case
from jaxtempl.text.ingest import CaseReader, Quarantine


class RequestContexts(NamedTuple):
    """What requests are made of.

    Attributes:
        messages: `{"messages": [...]}` of each context, in JSON.
        cases: that were read.
        bad: records that were left out, by reason.
    """

    messages: list[bytes]
    cases: int
    bad: Mapping[str, int]


def draw_contexts(path: str, count: int, seed: int) -> RequestContexts:
    """Draws contexts from all of a file, each with the same chance, none of them twice.

    Args:
        path: file, folder or URL of cases.
        count: how many; all of them where the cases have fewer.
        seed: the same one draws the same contexts.

    Raises:
        UserError: nothing is there, or no case in which an advocate answers.
    """
    with tempfile.TemporaryDirectory() as folder:  # bin/prepare lists bad records; here they are only counted
        quarantine = Quarantine(Path(folder) / "bad.jsonl")
        chosen = random.Random(seed)
        # The least of as many random keys is a uniform sample in random order, in one pass that keeps no more.
        keyed = ((chosen.random(), i, *found) for i, found in enumerate(_all(CaseReader(quarantine), path)))
        drawn = heapq.nsmallest(count, keyed)
    if not drawn:
        raise UserError(
            f"{path} has nothing to ask about ({quarantine.good} good and {quarantine.reasons.total()} bad records); "
            "it needs cases in which an advocate answers a message"
        )
    messages = [_json(case, end) for _, _, case, end in drawn]
    return RequestContexts(messages, quarantine.good, dict(quarantine.reasons))


def _all(reader: CaseReader, path: str) -> Iterator[tuple[Case, int]]:
    """Every place of a case, as the number of messages before it, at which an advocate answers."""
    for case in reader.cases(records.find_files(path)):
        for end, message in enumerate(case.messages):
            if end and message.role == "advocate":
                yield case, end


def _json(case: Case, end: int) -> bytes:
    return msgspec.json.encode({"messages": [{"role": m.role, "text": m.text} for m in case.messages[:end]]})


def draw_order(contexts: int, requests: int, rng: np.random.Generator) -> Int[np.ndarray, " N"]:
    """Which context each request asks about: none twice while there are enough, else drawn with replacement."""
    return rng.permutation(contexts)[:requests] if requests <= contexts else rng.integers(contexts, size=requests)


def request_bodies(contexts: RequestContexts, chosen: Int[np.ndarray, " N"], name: str) -> Iterator[bytes]:
    """The requests one by one, each of a case of its own: a server drops the older of two requests of one case.

    They are joined as they are taken, which costs a microsecond, so that an hour's requests need not be held.
    """
    for i, context in enumerate(chosen.tolist()):
        yield b'{"case_id":"%b-%d",%b' % (name.encode(), i, contexts.messages[context][1:])
