"""Names of people, by lists of names and by cues.

A list finds a name in any sentence; a cue ("my name is") finds a name that is on no list. Neither finds all: what they
find is measured by `bin/prepare --measure_redaction`.
"""

import bisect
import functools
import re
from collections.abc import Collection, Iterator, Sequence

from jaxtempl.config.paths import ASSETS
from jaxtempl.text.redaction.findings import Finding

WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*\b")
POSSESSIVE = re.compile("['\u2019]s$")
PARTS = re.compile("['\u2019-]")
LONGEST = 3  # words of a name after a cue, or after a first name on the list
SHORTEST = 3  # letters of a name that is redacted through its case
TITLES = ("Mr", "Mrs", "Ms", "Miss", "Dr", "Prof", "Herr", "Frau", "Ing", "Dipl.-Ing", "Univ.Prof")
DEGREES = ("Jr", "Sr", "MD", "PhD", "DDS", "DVM", "MBA", "B.Sc", "M.Sc", "B.A", "M.A", "B.Eng", "M.Eng")
TITLE = rf"(?:(?:{'|'.join(map(re.escape, TITLES))})\.?[ \n])"
BEFORE = re.compile(rf"(?:\b{TITLE}){{1,2}}$")
AFTER = re.compile(rf",? (?:{'|'.join(map(re.escape, DEGREES))})\b\.?")
AROUND = 20  # characters before a name in which its titles stand
# After these a name follows in any case; after the others only capitalised words are one.
SURE_CUES = re.compile(
    r"\b(?:my (?:full |first |last )?name(?:'s| is)|name:|mein name ist|ich hei(?:ß|ss)e|account holder:?) "
    rf"{TITLE}{{0,2}}",
    re.IGNORECASE,
)
CUES = re.compile(
    r"\b(?:(?:i am|i'm|this is|speaking with|spoke (?:to|with)|hi|hello|hey|dear|hallo|regards|sincerely),?[ \n]"
    rf"{TITLE}{{0,2}}|{TITLE}{{1,2}})",
    re.IGNORECASE,
)
PARTICLES = {"van", "von", "de", "der", "den", "di", "da", "del", "la", "le", "bin", "al", "zu", "zur"}


@functools.cache
def _read(name: str) -> frozenset[str]:
    return frozenset((ASSETS / "names" / f"{name}.txt").read_text(encoding="utf-8").split())


def find(text: str) -> Iterator[Finding]:
    """Yield the names of a text, with titles and degrees."""
    for name in _find(text):
        title = BEFORE.search(text[max(0, name.start - AROUND) : name.start])
        degree = AFTER.match(text, name.end)
        yield Finding(
            name.start - len(title[0]) if title else name.start, degree.end() if degree else name.end, name.type
        )


def _find(text: str) -> Iterator[Finding]:
    words = list(WORD.finditer(text))
    yield from _listed(text, words)
    for cues, is_sure in ((SURE_CUES, True), (CUES, False)):
        for cue in cues.finditer(text):
            next_word = bisect.bisect_left(words, cue.end(), key=re.Match.start)
            yield from _after_cue(text, cue.end(), words[next_word : next_word + LONGEST + 1], is_sure)


def learnable(name: str) -> Iterator[str]:
    """Yield the words of a name by which its bearer may be called in other messages of the case."""
    for word in WORD.findall(name):
        word = POSSESSIVE.sub("", word)
        if len(word) >= SHORTEST and word.lower() not in PARTICLES and word not in TITLES:
            yield word


def occurrences(text: str, words: Collection[str]) -> Iterator[Finding]:
    """Yield the learnt words in a text: in any case, but as a name is written where a word has another meaning."""
    forms = {form for word in words for form in _forms(word)}
    for match in WORD.finditer(text):
        if not forms.isdisjoint((match[0], *PARTS.split(match[0]))):
            yield Finding(match.start(), match.end(), "NAME")


def _forms(word: str) -> set[str]:
    forms = {word, word.title(), word.upper()}
    return forms if word.lower() in _read("words") else forms | {word.lower()}


def _is_capitalised(word: str) -> bool:
    return word[0].isupper()


def _is_common(word: str) -> bool:
    return len(word) == 1 or word.lower() in _read("words")


def _is_in(name: str, word: str) -> bool:
    return POSSESSIVE.sub("", word.lower()) in _read(name)


def _is_first(word: str) -> bool:
    return _is_in("first", word) and not _is_common(word)


def _is_last(word: str) -> bool:
    return _is_in("last", word) and not _is_common(word)


def _listed(text: str, words: Sequence[re.Match[str]]) -> Iterator[Finding]:
    """Yield the names that begin with a listed first name, or that a listed surname ends."""
    i = 0
    while i < len(words):
        word, following = words[i][0], words[i + 1 : i + 1 + LONGEST]
        end = i + 1 + _run(text, words[i], following)
        has_surname = end > i + 1 and _is_last(words[end - 1][0])
        if _is_capitalised(word) and (
            _is_first(word) or (has_surname and (_is_in("first", word) or not _is_common(word)))
        ):
            yield Finding(words[i].start(), words[end - 1].end(), "NAME")
            i = end
        elif (
            _is_first(word) and following and _is_last(following[0][0]) and _are_adjacent(text, words[i], following[0])
        ):
            yield Finding(words[i].start(), following[0].end(), "NAME")
            i += 2
        else:
            i += 1


def _run(text: str, word: re.Match[str], following: Sequence[re.Match[str]]) -> int:
    """Return the number of words after a first one that continue its name: capitalised, particles between them."""
    count = 0
    for i, other in enumerate(following):
        if other[0] in DEGREES or not _are_adjacent(text, word, other):
            break
        if _is_capitalised(other[0]) and (_is_in("last", other[0]) or not _is_common(other[0])):
            count = i + 1
        elif other[0].lower() not in PARTICLES and len(other[0]) > 1:  # one letter is an initial
            break
        word = other
    return count


def _are_adjacent(text: str, word: re.Match[str], other: re.Match[str]) -> bool:
    return text[word.end() : other.start()] in (" ", ". ")  # the second after an initial


def _after_cue(text: str, start: int, following: Sequence[re.Match[str]], is_sure: bool) -> Iterator[Finding]:
    if not following or following[0].start() != start:
        return
    first = following[0]
    if _is_common(first[0]):
        is_name = _is_capitalised(first[0]) and _is_in("first", first[0])  # "I am Mark"
    else:
        is_name = is_sure or _is_capitalised(first[0])
    if not is_name:
        return
    end = _run(text, first, following[1:])
    if is_sure and not end and len(following) > 1 and _are_adjacent(text, first, following[1]):
        end = int(not _is_common(following[1][0]))
    yield Finding(first.start(), following[end].end(), "NAME")
