"""Redact cases: the one function that preparation and serving apply, so that training and serving read one text.

A case is redacted as a whole: a name that one message reveals is replaced in all of them.
"""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtempl.text.cases import KnownValues, Message
from jaxtempl.text.redaction import names, numbers, recognisers
from jaxtempl.text.redaction.findings import Finding, Recogniser, merge, substitute
from jaxtempl.text.redaction.model import load_model
from jaxtempl.text.redaction.policy import Policy

# A server reads a case's messages again with each later request. Longer messages are not cached, so that no client can
# fill its memory.
CACHED_MESSAGES, CACHED_CHARACTERS = 8192, 1000
PASSES = 3  # a placeholder can uncover what stood next to a value; redacting twice changes nothing more
LONG_NUMBER = 6  # digits from which a known value is found in any grouping


_Known = tuple[str, Sequence[re.Pattern[str]], frozenset[str]]  # a type, its values, the words of its names


class Redactor:
    """Redacts cases by a policy.

    Attributes:
        policy: The policy.
        counts: Number of values replaced so far, by type; never a value.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.counts: Counter[str] = Counter()
        keep = [_value_pattern(value) for value in policy.keep]
        # The cache must not refer to `self`, as in a Window.
        self._scan = functools.partial(_scan, list(_recognisers(policy)), keep)
        self._cached = functools.lru_cache(CACHED_MESSAGES)(self._scan)

    def messages(self, messages: Sequence[Message], known: KnownValues) -> list[Message]:
        """Return the messages of a case with placeholders instead of values.

        Args:
            messages: Messages of the case, oldest first.
            known: Values of the case's customer, by type.
        """
        placeholders = _Placeholders(self.policy.numbered, self.counts)
        texts, values = [message.text for message in messages], list(_known(known))
        for _ in range(PASSES):
            found = self._find(texts, values)
            if not any(found):
                break
            texts = [substitute(text, each, placeholders) for text, each in zip(texts, found, strict=True)]
        return [
            message if message.text == text else Message(message.role, text, message.template)
            for message, text in zip(messages, texts, strict=True)
        ]

    def text(self, text: str) -> str:
        """Return one text with placeholders instead of values."""
        return self.messages([Message("customer", text)], {})[0].text

    def find(self, text: str, known: KnownValues | None = None) -> list[Finding]:
        """Return the findings of one text, disjoint and in order."""
        return self._find([text], list(_known(known or {})))[0]

    def _find(self, texts: Sequence[str], known: Sequence[_Known]) -> list[list[Finding]]:
        scanned = [self._cached(text) if len(text) <= CACHED_CHARACTERS else self._scan(text) for text in texts]
        learnt = set[str]().union(*(words for _, words in scanned))
        if not learnt and not known:
            return [found for found, _ in scanned]
        return [
            merge(text, [*found, *names.occurrences(text, learnt), *_matches(text, known)])
            for text, (found, _) in zip(texts, scanned, strict=True)
        ]


class _Scan(NamedTuple):
    """Findings of one text, without the other messages of its case.

    Attributes:
        found: Its findings, disjoint and in order.
        words: Words of the names among them, which other messages may hold.
    """

    found: list[Finding]
    words: frozenset[str]


def _scan(recognise: Sequence[Recogniser], keep: Sequence[re.Pattern[str]], text: str) -> _Scan:
    found = merge(text, (finding for each in recognise for finding in each(text)))
    kept = [match.span() for pattern in keep for match in pattern.finditer(text)]
    found = [f for f in found if not any(start <= f.start and f.end <= end for start, end in kept)]
    values = (text[finding.start : finding.end] for finding in found if finding.type == "NAME")
    return _Scan(found, frozenset(word for name in values for word in names.learnable(name)))


class _Placeholders:
    """Makes and counts the placeholders of one case; equal values have one number."""

    def __init__(self, numbered: bool, counts: Counter[str]) -> None:
        self._numbered, self._counts = numbered, counts
        self._values = defaultdict[str, dict[str, int]](dict)

    def __call__(self, type_: str, value: str) -> str:
        self._counts[type_] += 1
        if not self._numbered:
            return f"<{type_}>"
        numbers_ = self._values[type_]
        return f"<{type_}_{numbers_.setdefault(_normalised(value), len(numbers_) + 1)}>"


def _normalised(value: str) -> str:
    return "".join(filter(str.isalnum, value)).casefold()


def _recognisers(policy: Policy) -> Iterator[Recogniser]:
    yield from (recognisers.RECOGNISERS[name] for name in policy.types if name in recognisers.RECOGNISERS)
    if chosen := set(policy.types) & set(numbers.TYPES):
        yield numbers.Numbers(chosen, policy.regions)
    if "NAME" in policy.types:
        yield names.find
    if policy.model:
        yield load_model(Path(policy.model), policy.model_sha256)
    yield from (recognisers.pattern(name, expression) for name, expression in policy.patterns.items())


def _known(known: KnownValues) -> Iterator[_Known]:
    for type_, values in known.items():
        usable = [value for value in values if len(_normalised(value)) > 1]
        words = {word for value in usable if type_ == "NAME" for word in names.learnable(value)}
        yield type_, [_value_pattern(value) for value in usable], frozenset(words)


def _matches(text: str, known: Iterable[_Known]) -> Iterator[Finding]:
    for type_, patterns, words in known:
        for pattern in patterns:
            yield from (Finding(match.start(), match.end(), type_) for match in pattern.finditer(text))
        if words:
            yield from names.occurrences(text, words)


@functools.lru_cache(CACHED_MESSAGES)
def _value_pattern(value: str) -> re.Pattern[str]:
    """Return the pattern of a value, in any case and with any punctuation or space between its parts."""
    digits = [character for character in value if character.isdigit()]
    has_letters = any(character.isalpha() for character in value)
    parts = digits if len(digits) >= LONG_NUMBER and not has_letters else re.findall(r"[^\W_]+", value)
    spelled = r"[\W_]*".join(map(re.escape, parts))
    return re.compile(rf"(?<![^\W_]){spelled}(?![^\W_])", re.IGNORECASE)
