"""What the text of a compiled program (HLO) says: its arrays and its collectives, and which of these run in a loop."""

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
        kind: its name in HLO.
        arrays: what it yields on a device.
        looped: whether it is inside a loop, so runs once a layer or chunk.
    """

    kind: str
    arrays: tuple[Array, ...]
    looped: bool

    @property
    def bytes(self) -> int:
        """Of what it yields on one device."""
        return sum(BYTES[dtype] * math.prod(sizes) for dtype, sizes in self.arrays)


def collectives(program: str) -> list[Collective]:
    """Every collective in the text of a compiled program.

    On a TPU one that runs beside other work stands in each computation that it is fused into, always with its channel.
    """
    lines = list(_lines(program))
    fused = set(re.findall(r"calls=%?([\w.-]+)", program))
    looped = _looped(lines)
    found = dict[tuple[Any, ...], Collective]()
    for inside, line in lines:
        match = _COLLECTIVE.search(line)
        if match:
            name, yields, kind = match.groups()
            told = tuple(re.findall(r'channel_id=\d+|op_name="[^"]*"', line)) if inside in fused else name
            moved = tuple(arrays(yields))
            if kind == "collective-permute" and len(moved) > 1:
                moved = moved[1:2]  # what it sends comes first
            found[kind, moved, told] = Collective(kind, moved, inside in looped)
    return list(found.values())


def arrays(text: str) -> Iterator[Array]:
    """Every array type in a piece of HLO."""
    for dtype, sizes in _ARRAY.findall(text):
        yield dtype, tuple(int(size) for size in sizes.split(",") if size)


def _lines(program: str) -> Iterator[tuple[str, str]]:
    """Every line of a program with the computation that it belongs to."""
    inside = ""
    for line in program.splitlines():
        header = _COMPUTATION.match(line)
        inside = header.group(1) if header else inside
        yield inside, line


def _looped(lines: Iterable[tuple[str, str]]) -> set[str]:
    """Computations that a loop runs, and all that these call."""
    called, waiting, found = defaultdict[str, set[str]](set), set[str](), set[str]()
    for inside, line in lines:
        called[inside].update(re.findall(r"(?:calls|body|to_apply)=%?([\w.-]+)", line))
        waiting.update(re.findall(r"body=%?([\w.-]+)", line))
    while waiting:
        found.add(name := waiting.pop())
        waiting |= called[name] - found
    return found


def listed(program: str) -> list[dict[str, Any]]:
    """Its collectives as a report has them, alike ones together, those that move most first."""
    counted = Counter(collectives(program)).items()
    return [
        {"kind": c.kind, "in_a_loop": c.looped, "times": n, "bytes": c.bytes, "arrays": [list(a) for a in c.arrays]}
        for c, n in sorted(counted, key=lambda pair: -pair[0].bytes * pair[1])
    ]
