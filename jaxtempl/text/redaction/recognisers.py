"""Recognisers of values with letters: addresses on the net, bank accounts, national numbers, street addresses.

A checksum or a parser confirms a value wherever its standard has one. Patterns scan in linear time, as a server runs
them on what any client sends. Presidio's recognisers are of the same kind; importing one of them loads spaCy and 50
packages, which a serving machine does not have.
"""

import ipaddress
import re
from collections.abc import Iterator

from stdnum import iban

from jaxtempl.text.redaction.findings import Finding, Recogniser

LOCAL = r"\w.!#$%&'*+/=?^`{|}~-"
EMAIL = re.compile(rf"(?<![{LOCAL}])[{LOCAL}]+@[\w-]+(?:\.[\w-]+)+", re.ASCII)
INTERNATIONAL_EMAIL = re.compile(rf"(?<![{LOCAL}])[{LOCAL}]+@[\w-]+(?:\.[\w-]+)+")
# Bare host names are found under these domains only: "done.Thanks" is no address.
DOMAINS = "com|org|net|edu|gov|info|biz|io|app|dev|ai|me|co|us|uk|de|eu|at|ch|fr|nl|ie|ca"
HOST = rf"(?:[a-z0-9-]+\.)+(?:{DOMAINS})\b(?![.-]\w)(?:/[^\s<>\"]*)?"
URL = re.compile(
    rf"(?<![\w@.-])(?:[a-z][a-z+]*://[^\s<>\"]+|www\.[^\s<>\"]+|{HOST})",
    re.IGNORECASE,
)
QUAD = r"\d{1,3}(?:\.\d{1,3}){3}"
IP = re.compile(rf"(?<![\w.])(?:{QUAD}|[0-9a-f]{{0,4}}(?::[0-9a-f]{{0,4}}){{2,7}}(?:{QUAD})?)(?![\w:])", re.IGNORECASE)
IBAN = re.compile(r"(?<![^\W_])[A-Z]{2}\d{2}(?:[ \u00a0-]?[A-Z0-9]){11,30}", re.IGNORECASE)
# HMRC's National Insurance Manual, NIM39110: prefixes in use, six digits, a suffix from A to D.
NINO = re.compile(
    r"(?<![^\W_])(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][ -]?"
    r"\d{2}[ -]?\d{2}[ -]?\d{2}[ -]?[A-D](?![^\W_])",
    re.IGNORECASE,
)
# The German pension number: area, day, month and year of birth, initial, serial number, check digit (VKVV, section 4).
PENSION = re.compile(r"(?<![^\W_])\d{2} ?\d{6} ?[A-Z] ?\d{3}(?![^\W_])", re.IGNORECASE)
WEIGHTS = (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1)
STREET = (
    "Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Square|Sq|Boulevard|Blvd|Way|Terrace|Close"
    "|Crescent|Parkway|Pkwy|Highway|Hwy|Circle|Cir|Trail|Gardens"
)
STRASSE = r"[Ss]traße|[Ss]trasse|[Ss]tr\.|weg|platz|allee|gasse|ring|damm|ufer"
ROOM = r"(?:,? (?:Apt|Apartment|Suite|Unit|Flat)\.? ?#?\w+)?"
ADDRESSES = (
    re.compile(rf"(?<!\w)\d{{1,5}}[A-Za-z]? (?:[A-Z][\w'.-]{{0,30}} ){{1,4}}(?:{STREET})\b\.?{ROOM}"),
    re.compile(
        rf"(?<!\w)[A-ZÄÖÜ][\w-]{{0,40}}(?:{STRASSE}) \d{{1,4}}[a-z]?(?:,? \d{{5}} [A-ZÄÖÜ][\w-]{{1,40}})?(?!\w)"
    ),
    re.compile(r"(?<!\w)[A-Z]{1,2}\d[A-Z\d]? ?\d[ABD-HJLNP-UW-Z]{2}(?!\w)"),  # a postcode of the United Kingdom
    re.compile(r"(?<!\w)[A-Z][\w'.-]{0,30}(?: [A-Z][\w'.-]{0,30}){0,2}, [A-Z]{2} \d{5}(?:-\d{4})?(?!\w)"),  # USA
)


def emails(text: str) -> Iterator[Finding]:
    """Yield e-mail addresses."""
    if "@" in text:
        pattern = EMAIL if text.isascii() else INTERNATIONAL_EMAIL
        yield from (Finding(match.start(), match.end(), "EMAIL") for match in pattern.finditer(text))


def urls(text: str) -> Iterator[Finding]:
    """Yield addresses on the web, without the punctuation of the sentence around them."""
    if "." in text or "://" in text:
        for match in URL.finditer(text):
            yield Finding(match.start(), match.start() + len(match[0].rstrip(".,;:!?)]}'\"")), "URL")


def ips(text: str) -> Iterator[Finding]:
    """Yield addresses of the Internet Protocol, versions 4 and 6."""
    if "." in text or ":" in text:
        for match in IP.finditer(text):
            if _is_ip(match[0]):
                yield Finding(match.start(), match.end(), "IP")


def _is_ip(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return len(value) > 3  # not the "::" of a sentence


def ibans(text: str) -> Iterator[Finding]:
    """Yield IBANs whose country, length and check digits are right; the pattern may run on into later words."""
    for match in IBAN.finditer(text):
        ends = (end for end in range(match.end(), match.start() + 14, -1) if text[end - 1].isalnum())
        valid = (end for end in ends if iban.is_valid(text[match.start() : end], check_country=False))
        if end := next(valid, None):
            yield Finding(match.start(), end, "IBAN")


def ninos(text: str) -> Iterator[Finding]:
    """Yield National Insurance numbers of the United Kingdom."""
    return (Finding(match.start(), match.end(), "NINO") for match in NINO.finditer(text))


def pension_check_digit(start: str) -> str:
    """Return the last digit of a German pension number that begins with these eleven characters."""
    digits = f"{start[:8]}{ord(start[8]) - 64:02}{start[9:]}"
    products = (weight * int(digit) for weight, digit in zip(WEIGHTS, digits, strict=True))
    return str(sum(product // 10 + product % 10 for product in products) % 10)


def pension_numbers(text: str) -> Iterator[Finding]:
    """Yield German pension insurance numbers with the right check digit."""
    for match in PENSION.finditer(text):
        value = match[0].replace(" ", "").upper()
        if pension_check_digit(value[:-1]) == value[-1]:
            yield Finding(match.start(), match.end(), "PENSION_NUMBER")


def addresses(text: str) -> Iterator[Finding]:
    """Yield lines of street addresses and postcodes; no checksum confirms one, so many forms are not found."""
    for pattern in ADDRESSES:
        yield from (Finding(match.start(), match.end(), "ADDRESS") for match in pattern.finditer(text))


def pattern(type_: str, expression: str) -> Recogniser:
    """Return the recogniser of a user's pattern."""
    compiled = re.compile(expression)

    def recognise(text: str) -> Iterator[Finding]:
        return (Finding(match.start(), match.end(), type_) for match in compiled.finditer(text) if match[0])

    return recognise


# Types and their recogniser; those of numbers.TYPES share one scan.
RECOGNISERS: dict[str, Recogniser] = {
    "EMAIL": emails,
    "URL": urls,
    "IP": ips,
    "IBAN": ibans,
    "NINO": ninos,
    "PENSION_NUMBER": pension_numbers,
    "ADDRESS": addresses,
}
