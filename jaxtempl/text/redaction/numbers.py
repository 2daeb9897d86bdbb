"""Recognisers of values of digits alone: payment cards, telephones, national numbers.

People write a number in groups, next to other numbers. A run of groups is therefore read window by window, longest
first, and the first type that a window passes names it.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import phonenumbers
from stdnum import luhn
from stdnum.de import idnr
from stdnum.gb import nhs, utr
from stdnum.us import itin, ssn

from jaxtempl.text.redaction.findings import Finding

TYPES = ("CARD", "SSN", "TAX_ID", "NHS_NUMBER", "PHONE")
SEPARATORS = " \u00a0.\u2013/()-"
RUN = re.compile(rf"\d+(?:[{SEPARATORS}]{{1,3}}\d+)*")
GROUPS, DIGITS = 9, range(8, 20)  # of one number
CUE = 40  # characters before a number in which a cue may stand
# Issuer identification numbers and lengths (ISO/IEC 7812) of the card networks, from American Express to UnionPay.
CARD = re.compile(
    r"3[47]\d{13}|3[0689]\d{12,17}|35\d{14,17}|4\d{12}(?:\d{3}){0,2}|2[2-7]\d{14}|5[1-5]\d{14}"
    r"|(?:50|5[678]|6\d|81)\d{10,17}|(?:2131|1800)\d{11}|0604\d{8,15}"
)
NORTH_AMERICAN = re.compile(r"1?[2-9]\d\d[2-9]\d{6}")  # the numbering plan of the USA and Canada
NORTH_AMERICAN_GROUPS = ((10,), (3, 3, 4), (3, 7), (6, 4))
EXTENSION = re.compile(r" ?(?:x|ext\.?|extension) ?\d{1,6}\b", re.IGNORECASE)
DATE = re.compile(r"(?<![\d+(-])(?:\d{1,2}[./-]\d{1,2}[./-](?:19|20)\d\d|(?:19|20)\d\d[./-]\d{1,2}[./-]\d{1,2})(?!\d)")


class DigitWindow(NamedTuple):
    """Adjacent groups of digits.

    Attributes:
        start: Position of its text.
        end: Position after its text.
        text: The window as written, with an opening parenthesis or a plus sign before it.
        digits: Its digits.
        groups: Number of digits of each group.
        before: Text that precedes it, in which a cue may stand.
    """

    start: int
    end: int
    text: str
    digits: str
    groups: tuple[int, ...]
    before: str


NumberCheck = Callable[[DigitWindow], bool]


class Numbers:
    """The recogniser of the types that a policy selects from TYPES.

    Args:
        types: Types to find.
        regions: Countries (ISO 3166) whose national telephone numbers are found; international ones always are.
    """

    def __init__(self, types: Collection[str], regions: Sequence[str]) -> None:
        # People mistype telephone numbers, so one of a possible length is found where no valid one is.
        valid, possible = (functools.partial(_is_phone, regions, check) for check in _PHONE_CHECKS)
        strict: dict[str, NumberCheck] = {
            "CARD": _is_card,
            "SSN": _is_ssn,
            "TAX_ID": _is_tax_id,
            "NHS_NUMBER": _is_nhs_number,
            "PHONE": valid,
        }
        self._rounds = [
            [(name, check) for name, check in checks.items() if name in types]
            for checks in (strict, {"PHONE": possible})
        ]

    def __call__(self, text: str) -> Iterator[Finding]:
        """Yield the numbers of a text; a date is none."""
        text = DATE.sub(lambda match: "_" * len(match[0]), text)
        for run in RUN.finditer(text):
            if sum(map(str.isdigit, run[0])) >= DIGITS.start:
                groups = [(run.start() + m.start(), run.start() + m.end()) for m in re.finditer(r"\d+", run[0])]
                yield from self._in_run(text, groups)

    def _in_run(self, text: str, groups: Sequence[tuple[int, int]]) -> Iterator[Finding]:
        first = 0
        while first < len(groups):
            lasts = range(min(len(groups), first + GROUPS), first, -1)
            windows = [window for last in lasts if (window := _window(text, groups[first:last]))]
            tries = (_check(text, window, checks) for checks in self._rounds for window in windows)
            found = next(filter(None, tries), None)
            if found:
                yield found
            first += 1
            while found and first < len(groups) and groups[first][0] < found.end:
                first += 1


def _window(text: str, groups: Sequence[tuple[int, int]]) -> DigitWindow | None:
    lengths = tuple(end - start for start, end in groups)
    if sum(lengths) not in DIGITS:
        return None
    (start, _), (_, end) = groups[0], groups[-1]
    digits = "".join(text[a:b] for a, b in groups)
    start -= text[start - 1 : start] == "(" and ")" in text[start:end]
    start -= text[start - 1 : start] == "+"
    return DigitWindow(start, end, text[start:end], digits, lengths, text[max(0, start - CUE) : start])


def _check(text: str, window: DigitWindow, checks: Sequence[tuple[str, NumberCheck]]) -> Finding | None:
    for name, check in checks:
        if check(window):
            extension = EXTENSION.match(text, window.end) if name == "PHONE" else None
            return Finding(window.start, extension.end() if extension else window.end, name)
    return None


def _has_cue(window: DigitWindow, *cues: str) -> bool:
    return any(cue in window.before.lower() for cue in cues)


def _is_card(window: DigitWindow) -> bool:
    return bool(CARD.fullmatch(window.digits)) and luhn.is_valid(window.digits)


def _is_ssn(window: DigitWindow) -> bool:
    written = window.groups == (3, 2, 4) or (window.groups == (9,) and _has_cue(window, "ssn", "social"))
    return written and ssn.is_valid(window.digits)


def _is_tax_id(window: DigitWindow) -> bool:
    if window.groups in ((11,), (2, 3, 3, 3)):  # the German Identifikationsnummer
        return idnr.is_valid(window.digits)
    if window.groups in ((3, 2, 4), (9,)):
        return itin.is_valid(window.digits)
    return _has_cue(window, "utr", "taxpayer") and utr.is_valid(window.digits)


def _is_nhs_number(window: DigitWindow) -> bool:
    return _has_cue(window, "nhs") and nhs.is_valid(window.digits)


_PHONE_CHECKS = (phonenumbers.is_valid_number, phonenumbers.is_possible_number)


def _is_phone(regions: Sequence[str], accept: Callable[[phonenumbers.PhoneNumber], bool], window: DigitWindow) -> bool:
    if window.before[-1:].isalnum() or window.before[-1:] == "_":
        return False
    if "+" in window.text or window.digits.startswith("00"):
        return _is_number("+" + window.digits.lstrip("0"), None, accept)
    if window.digits.startswith("0"):
        return len(window.digits) >= 9 and any(_is_number(window.digits, region, accept) for region in regions)
    groups = window.groups[1:] if window.groups[0] == 1 else window.groups
    is_grouped = groups in NORTH_AMERICAN_GROUPS or window.groups == (11,)
    return is_grouped and "US" in regions and bool(NORTH_AMERICAN.fullmatch(window.digits))


def _is_number(number: str, region: str | None, accept: Callable[[phonenumbers.PhoneNumber], bool]) -> bool:
    try:
        return accept(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False
