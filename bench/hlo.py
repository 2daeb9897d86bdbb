"""A parser of compiled programs (HLO text): arrays, collectives, and which of these run in a loop."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
_ARRAY = re.compile(r"\b(" + "|".join(BYTES) + r")\[([\d,]*)\]")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(r"%?([\w.-]+) = (.*?) (" + "|".join(KINDS) + r")(?:-start)?\(")

Array = tuple[str, tuple[int, ...]]  # dtype and sizes


class Collective(NamedTuple):
    """One collective operation of a compiled program.

    Attributes:
        kind: Name in HLO.
        arrays: Output arrays on a device.
        looped: Whether it is inside a loop, and so runs once a layer or chunk.
    """

    kind: str
    arrays: tuple[Array, ...]
    looped: bool

    @property
    def bytes(self) -> int:
        """Bytes of the output on one device."""
        return sum(BYTES[dtype] * math.prod(sizes) for dtype, sizes in self.arrays)


def collectives(program: str) -> list[Collective]:
    """Return every collective in the text of a compiled program.

    On a TPU, an asynchronous collective appears in each computation that it is fused into, always with its channel.
    """
    lines = list(_lines(program))
    fused = set(re.findall(r"calls=%?([\w.-]+)", program))
    looped = _looped(lines)
    found = dict[tuple[Any, ...], Collective]()
    for inside, line in lines:
        match = _COLLECTIVE.search(line)
        if match:
            name, yields, kind = match.groups()
            identity = tuple(re.findall(r'channel_id=\d+|op_name="[^"]*"', line)) if inside in fused else name
            moved = tuple(arrays(yields))
            if kind == "collective-permute" and len(moved) > 1:
                moved = moved[1:2]  # the operand comes first
            found[kind, moved, identity] = Collective(kind, moved, inside in looped)
    return list(found.values())


def arrays(text: str) -> Iterator[Array]:
    """Yield every array type in HLO text."""
    for dtype, sizes in _ARRAY.findall(text):
        yield dtype, tuple(int(size) for size in sizes.split(",") if size)


def _lines(program: str) -> Iterator[tuple[str, str]]:
    """Yield each line of a program with the name of its computation."""
    inside = ""
    for line in program.splitlines():
        header = _COMPUTATION.match(line)
        inside = header.group(1) if header else inside
        yield inside, line


def _looped(lines: Iterable[tuple[str, str]]) -> set[str]:
    """Return the computations that a loop runs, directly or through calls."""
    called, waiting, found = defaultdict[str, set[str]](set), set[str](), set[str]()
    for inside, line in lines:
        called[inside].update(re.findall(r"(?:calls|body|to_apply)=%?([\w.-]+)", line))
        waiting.update(re.findall(r"body=%?([\w.-]+)", line))
    while waiting:
        found.add(name := waiting.pop())
        waiting |= called[name] - found
    return found


def listed(program: str) -> list[dict[str, Any]]:
    """Return the collectives of a program for a report: equal ones grouped, the largest first."""
    counted = Counter(collectives(program)).items()
    return [
        {"kind": c.kind, "in_a_loop": c.looped, "times": n, "bytes": c.bytes, "arrays": [list(a) for a in c.arrays]}
        for c, n in sorted(counted, key=lambda pair: -pair[0].bytes * pair[1])
    ]
