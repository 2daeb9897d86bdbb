"""Makes the sgd transcripts from google-research-datasets/dstc8-schema-guided-dialogue (CC BY-SA 4.0).

    python -m bench.data.sgd --source=dstc8-schema-guided-dialogue --out=data/sgd

The system's side was made from act templates and paraphrased by people, so each reply has an exact identity: its
service and its acts with their slots, values left out.

- template: `<Service>:<ACT>(<slots>)+...`, acts in the order of the turn, slots sorted within an act
- template2: the same without the service
- system: the service call and its first result, before the reply that follows from it

The published splits hold out whole services; a classifier of fixed classes needs every class in training, so cases
are split by a hash of their id and the published split is kept in `orig_split`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.data.common import Case, Message, arguments, message, save, split_of

SPLITS = ("train", "dev", "test")


def acts(frame: dict[str, Any]) -> str:
    """The identity of a reply within one service: its acts and their slots."""
    slots: dict[str, set[str]] = {}
    for action in frame["actions"]:
        slots.setdefault(action["act"], set()).update([action["slot"]] if action["slot"] else [])
    return "+".join(f"{act}({','.join(sorted(some))})" if some else act for act, some in slots.items())


def lookup(frame: dict[str, Any]) -> Message | None:
    """The service call of a frame, if there is one, and what came back first."""
    call = frame.get("service_call")
    if not call:
        return None
    results = frame.get("service_results") or []
    first = _pairs(results[0]) if results else "nothing found"
    more = f" [{len(results)} items]" if len(results) > 1 else ""
    return message("system", f"{call['method']}({_pairs(call['parameters'])}) -> {first}{more}")


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def turn(record: dict[str, Any]) -> Iterator[Message]:
    """The messages of one turn."""
    if record["speaker"] == "USER":
        yield message("customer", record["utterance"])
        return
    frames = record["frames"]
    yield from filter(None, map(lookup, frames))
    template = "|".join(f"{frame['service']}:{acts(frame)}" for frame in frames)
    yield message("advocate", record["utterance"], template, "|".join(map(acts, frames)))


def case(dialogue: dict[str, Any], split: str) -> Case:
    """One dialogue as a case."""
    return {
        "case_id": f"sgd-{split}-{dialogue['dialogue_id']}",
        "messages": [made for record in dialogue["turns"] for made in turn(record)],
        "services": dialogue["services"],
        "orig_split": split,
    }


def cases(source: Path) -> Iterator[Case]:
    """All dialogues of a checkout."""
    for split in SPLITS:
        for path in sorted((source / split).glob("dialogues_*.json")):
            yield from (case(dialogue, split) for dialogue in json.loads(path.read_text()))


if __name__ == "__main__":
    given = arguments(__doc__ or "")
    save(given.out, cases(given.source), lambda made: split_of(made["case_id"]))
