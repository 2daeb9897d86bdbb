"""Findings: the spans of a text that hold personal data, and how they become placeholders."""

import bisect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

PLACEHOLDER = re.compile(r"<[A-Z][A-Z_]*(?:_\d+)?>")


class Finding(NamedTuple):
    """A span of a text and the type of what it holds, from which its placeholder is named."""

    start: int
    end: int
    type: str


Recogniser = Callable[[str], Iterator[Finding]]


def merge(text: str, found: Iterable[Finding]) -> list[Finding]:
    """Return disjoint findings in order; those that overlap become one, of the longest one's type.

    A placeholder is no personal data, so findings that touch one are dropped.
    """
    taken = [match.span() for match in PLACEHOLDER.finditer(text)] if "<" in text else []
    merged, longest = list[Finding](), 0
    for finding in sorted(found, key=lambda each: (each.start, -each.end)):
        before = bisect.bisect_left(taken, (finding.end, 0))  # placeholders that begin before the end
        if before and taken[before - 1][1] > finding.start:
            continue
        if not merged or finding.start >= merged[-1].end:
            merged.append(finding)
            longest = finding.end - finding.start
            continue
        last = merged[-1]
        type_ = finding.type if finding.end - finding.start > longest else last.type
        longest = max(longest, finding.end - finding.start)
        merged[-1] = Finding(last.start, max(last.end, finding.end), type_)
    return merged


def substitute(text: str, found: Iterable[Finding], placeholder: Callable[[str, str], str]) -> str:
    """Return the text with each of the disjoint findings replaced by `placeholder(type, value)`."""
    parts, end = list[str](), 0
    for finding in found:
        parts += [text[end : finding.start], placeholder(finding.type, text[finding.start : finding.end])]
        end = finding.end
    return "".join([*parts, text[end:]])
