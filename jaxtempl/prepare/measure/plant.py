"""Plant synthetic values into texts, in sentences that the authors of the rules had in view and in others."""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from faker import Faker

from jaxtempl.text.cases import KnownValues
from jaxtempl.text.redaction.recognisers import pension_check_digit

LOCALES = {"US": "en_US", "GB": "en_GB", "DE": "de_DE"}
NATIONAL = {"US": "SSN", "GB": "NINO", "DE": "PENSION_NUMBER"}
KNOWN = "KNOWN"  # a value of the case's record, which no rule recognises
FRAMES = ("seen", "unseen")
DIGITS = re.compile(r"\{digits:(\d+)\}")
_SENTENCES: Mapping[str, Mapping[str, Sequence[str]]] = yaml.safe_load(
    (Path(__file__).parent / "frames.yaml").read_text(encoding="utf-8")
)


class PlantedText(NamedTuple):
    """A text with a planted value, or with a sentence that holds none.

    Attributes:
        host: The user's text alone.
        text: The text with the planted sentence.
        start: Position of the value.
        end: Position after the value; equal to `start` where there is none.
        type: Type of the value; empty where there is none.
        country: Country of the value.
        frames: `seen` or `unseen`.
        known: Values of the case's record.
    """

    host: str
    text: str
    start: int
    end: int
    type: str
    country: str
    frames: str
    known: KnownValues


def plant(hosts: Sequence[str], count: int, seed: int) -> Iterator[PlantedText]:
    """Yield texts with planted values: `count` for each type, country and kind of frame, and as many without.

    Args:
        hosts: The user's texts.
        count: Number of values.
        seed: Seed of the values and their places.
    """
    generator = random.Random(seed)
    for country, locale in LOCALES.items():
        faker = Faker(locale)
        faker.seed_instance(seed)
        makers = _makers(faker, country, generator)
        for frames in FRAMES:
            for type_, make in makers.items():
                for _ in range(count):
                    yield _planted(generator, hosts, type_, country, frames, make())
    for _ in range(count):
        sentence = DIGITS.sub(lambda m: _digits(generator, int(m[1])), generator.choice(_SENTENCES["none"]["any"]))
        host = generator.choice(hosts)
        text = f"{host} {sentence}"
        yield PlantedText(host, text, len(text), len(text), "", "", "unseen", {})


def _makers(faker: Faker, country: str, generator: random.Random) -> dict[str, Callable[[], str]]:
    return {
        "EMAIL": faker.email,
        "CARD": lambda: _grouped(faker.credit_card_number(), generator),
        "IBAN": lambda: _grouped(faker.iban(), generator),
        "PHONE": faker.phone_number,
        NATIONAL[country]: lambda: _national(faker, country, generator),
        "NAME": faker.name,
        "ADDRESS": lambda: faker.street_address().replace("\n", ", "),
        "IP": lambda: generator.choice((faker.ipv4, faker.ipv6))(),
        "URL": faker.url,
        KNOWN: lambda: faker.bothify("??-####-##??"),
    }


def _grouped(value: str, generator: random.Random) -> str:
    """Return a value in one group, or in groups of four as cards and bank letters print it."""
    separator = generator.choice(("", " ", "-"))
    return separator.join(value[i : i + 4] for i in range(0, len(value), 4))


def _national(faker: Faker, country: str, generator: random.Random) -> str:
    """Return a number of the country's social insurance; faker's of Germany and the United Kingdom are none."""
    if country == "US":
        return faker.ssn()
    if country == "GB":
        number = generator.choice(("AB", "CE", "JG", "PW")) + _digits(generator, 6) + generator.choice("ABCD")
        return " ".join(number[i : i + 2] for i in range(0, 9, 2)) if generator.random() < 0.5 else number
    start = f"{generator.randrange(10, 90)}{generator.randrange(1, 29):02}{generator.randrange(1, 13):02}"
    start += _digits(generator, 2) + generator.choice("ABKMSZ") + _digits(generator, 2)
    return start + pension_check_digit(start)


def _digits(generator: random.Random, count: int) -> str:
    return "".join(str(generator.randrange(10)) for _ in range(count))


def _planted(
    generator: random.Random, hosts: Sequence[str], type_: str, country: str, frames: str, value: str
) -> PlantedText:
    host = generator.choice(hosts)
    sentences = _SENTENCES[frames]
    own = sentences.get(type_, ()) if frames == "unseen" else [*sentences["any"], *sentences.get(type_, ())]
    before, after = generator.choice(own or sentences["any"]).split("{}")
    if generator.random() < 0.5:
        before = f"{host} {before}"
    else:
        after = f"{after} {host}"
    known = {KNOWN: [value]} if type_ == KNOWN else {}
    return PlantedText(
        host, before + value + after, len(before), len(before) + len(value), type_, country, frames, known
    )
