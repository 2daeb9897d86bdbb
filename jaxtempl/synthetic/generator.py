"""A seeded generator of support cases for Pennywren, an invented payments company.

The data is synthetic: no customer, advocate, template or merchant in it exists. It lets every command run without
outside data and is made to be learnable but not trivial: the next template hangs on what the customer says, on what
the system looked up and on the advocate's habits, and some choices are noise.
"""

import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TypeVar

from jaxtempl.synthetic.phrases import (
    ADVOCATES,
    DIGRESSIONS,
    FACTS,
    FLOWS,
    INACTIVE,
    MACROS,
    PHRASES,
    PREDECESSORS,
    QUESTIONS,
    SWITCHES,
    SYNONYMS,
    TEMPLATES,
    WRAP_UP,
    Script,
    Step,
)

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")  # in any locale
FIRST_DAY = datetime(2024, 1, 1, tzinfo=UTC)
RETIREMENT = FIRST_DAY + timedelta(days=90)  # from here on no inactive template is sent
AUTOMATED_REPLY = (
    "Thanks for contacting Pennywren! We got your message and {advocate} will be with you shortly. "
    "For your safety, never share your password or a sign-in code."
)

# How often each thing happens, tuned so that top-1 is out of reach of a perfect score but top-5 is not.
SECOND_ANSWER = 0.25  # a customer answers the next question too
DIGRESSION = 0.13  # something comes between a question and its answer
SMALL_TALK = 0.15  # a customer greets the advocate back
ANNOUNCED_LOOKUP = 0.25  # an advocate says so before looking something up
FREE_TEXT = 0.13  # an advocate writes a line of their own before a template
EDIT = 0.1  # an advocate edits a template
OFF_HABIT = 0.25  # an advocate picks any of the equivalent templates rather than the usual one
SKIPPED_STEP = 0.03  # an advocate forgets a template of the script

T = TypeVar("T")
Style = Callable[[Random, str], str]


def _likeliest_first(rng: Random, options: Sequence[T]) -> T:
    """Draws with weights 1, 1/2, 1/3, ...: a long tail."""
    return rng.choices(options, [1 / rank for rank in range(1, len(options) + 1)])[0]


def _phrase(rng: Random, grammar: str) -> str:
    """Resolves `[a|b]` and `[macro]`, innermost first; an empty option leaves no double space behind."""
    while "[" in grammar:
        grammar = re.sub(r"\[([^][]*)\]", lambda m: rng.choice(MACROS.get(m[1], m[1]).split("|")), grammar, count=1)
    return " ".join(grammar.split())


def _lower(_: Random, text: str) -> str:
    return text.lower()


def _unpunctuated(_: Random, text: str) -> str:
    return re.sub(r"[.,?!'](?!\d|com)", "", text)


def _misspelt(rng: Random, word: str) -> str:
    """Drops, doubles or swaps one letter; words with digits or signs carry facts and stay."""
    if len(word) < 4 or not word.isalpha() or rng.random() > 0.15:
        return word
    i = rng.randrange(1, len(word) - 1)
    middle = rng.choice(("", word[i] * 2 + word[i + 1], word[i + 1] + word[i]))
    return word[:i] + middle + word[i + 2 if middle else i + 1 :]


def _typos(rng: Random, text: str) -> str:
    return " ".join(_misspelt(rng, word) for word in text.split())


def _terse(_: Random, text: str) -> str:
    return re.split(r"(?<=[.?!]) ", text)[0]


def _chatty(rng: Random, text: str) -> str:
    return f"{_phrase(rng, PHRASES['filler'][0])} {text}" if rng.random() < 0.35 else text


def _polite(rng: Random, text: str) -> str:
    return f"{text} {_phrase(rng, PHRASES['courtesy'][0])}" if rng.random() < 0.5 else text


def _emoji(rng: Random, text: str) -> str:
    return f"{text} {_phrase(rng, PHRASES['emoji'][0])}" if rng.random() < 0.6 else text


def _angry(rng: Random, text: str) -> str:
    return text.upper().replace(".", "!!!") if "@" not in text and rng.random() < 0.4 else text.replace("?", "???")


# In the order of application: what is added gets misspelt and lower-cased too.
STYLES: tuple[Style, ...] = (_terse, _chatty, _polite, _emoji, _angry, _typos, _unpunctuated, _lower)


def _day(at: datetime, later: int) -> str:
    day = at + timedelta(days=later)
    return f"{MONTHS[day.month - 1]} {day.day}"


def _facts(rng: Random, at: datetime) -> dict[str, str]:
    """Draws what a case of that time is about."""
    drawn = {key: rng.choice(options) for key, options in FACTS.items()}
    return drawn | {
        "advocate": rng.choice(ADVOCATES),
        "amount": f"${rng.choice((rng.randint(5, 90), rng.randint(90, 900)))}.{rng.choice((0, 50, 99, 15, 37)):02}",
        "balance": f"${rng.randint(900, 4000):,}.{rng.randint(0, 99):02}",
        "date": _day(at, -rng.randint(1, 9)),
        "due": _day(at, rng.randint(1, 6)),
        "digit": str(rng.randint(2, 9)),
        "email": f"{drawn['name'].lower()}{rng.randint(1, 99)}@example.com",
        "last_four": f"{rng.randint(0, 9999):04}",
        "number": f"{rng.randint(10**6, 10**7 - 1)}",
        "zip": f"{rng.randint(501, 99950):05}",
    }


class _Case:
    """One conversation as it unfolds: the messages so far and the agenda of steps to come."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.at = FIRST_DAY + timedelta(seconds=rng.randrange(366 * 86400))
        self.facts = _facts(rng, self.at)
        self.habit = ADVOCATES.index(self.facts["advocate"])
        self.styles = [style for style in STYLES if rng.random() < 0.2]
        self.messages: list[dict[str, object]] = []
        self.known: set[str] = set()  # questions that the customer has answered, asked or not
        self.agenda: Script = []
        self.untouched = list(FLOWS)

    def happens(self, share: float) -> bool:
        return self.rng.random() < share

    def add(self, role: str, text: str, **label: str | None) -> None:
        self.messages.append({"role": role, "text": text, **label, "at": self.at.isoformat()})
        self.at += timedelta(seconds=self.rng.randint(4, 90))

    def filled(self, grammar: str) -> str:
        return _phrase(self.rng, grammar).format_map(self.facts)

    def styled(self, text: str) -> str:
        for style in self.styles:
            text = style(self.rng, text)
        return " ".join(text.split())

    def says(self, *intents: str) -> None:
        """The customer says all of `intents`, in one message or in a row of them."""
        # Styled one by one: a terse customer must not swallow an answer that is then never asked for.
        texts = [self.styled(self.filled(self.rng.choice(PHRASES[intent]))) for intent in intents]
        for text in [" ".join(texts)] if self.happens(0.6) else texts:
            self.add("customer", text)

    def habitual(self, template: str) -> str:
        """The advocate's own pick among equivalent templates; early cases still use the retired ones."""
        options = SYNONYMS.get(template, (template,))
        pick = self.rng.choice(options) if self.happens(OFF_HABIT) else options[self.habit % len(options)]
        return PREDECESSORS.get(pick, pick) if self.at < RETIREMENT else pick

    def replies(self, template: str) -> None:
        if self.happens(FREE_TEXT):
            self.add("advocate", self.filled(self.rng.choice(PHRASES["advocate_note"])), template=None)
        pick = self.habitual(template)
        self.add("advocate", self.filled(self.edited(TEMPLATES[pick])), template=pick)

    def edited(self, text: str) -> str:
        if not self.happens(EDIT):
            return text
        return self.rng.choice((f"{PHRASES['edit_before'][0]} {text}", f"{text} {PHRASES['edit_after'][0]}"))

    def looks_up(self, lookup: str) -> None:
        if "lookup_" in lookup and self.happens(ANNOUNCED_LOOKUP):
            self.replies("LOOKING_INTO_IT")
        self.add("system", self.filled(lookup))

    def next_question(self) -> str | None:
        """The question that heads the agenda, if the customer now answers it unasked."""
        step = next(iter(self.agenda), None)
        return step if isinstance(step, str) and step in QUESTIONS and self.happens(SECOND_ANSWER) else None

    def answers(self, question: str) -> None:
        unasked = self.next_question()
        answered = [question, unasked] if unasked else [question]
        self.known.update(answered)
        self.says(*(QUESTIONS[each] for each in answered))

    def asks(self, question: str) -> None:
        """Asks what is not known yet; the answer may come late, or never if the customer changes the subject."""
        if question in self.known:
            return
        self.replies(question)
        if self.happens(DIGRESSION):
            self.agenda[:0] = [*_likeliest_first(self.rng, DIGRESSIONS), f"answer {question}"]
        else:
            self.answers(question)

    def opens(self, *before: str) -> None:
        """The customer turns to a flow, which replaces the agenda."""
        opening = _likeliest_first(self.rng, self.untouched)
        self.untouched.remove(opening)
        self.agenda = [*FLOWS[opening], WRAP_UP]
        unasked = self.next_question()
        self.known.update([unasked] if unasked else [])
        self.says(*before, opening, *([QUESTIONS[unasked]] if unasked else []))

    def greets(self) -> None:
        self.add("system", self.filled(AUTOMATED_REPLY))
        self.replies("GREETING")
        if self.happens(SMALL_TALK):
            self.says("small_talk")

    def takes(self, step: Step) -> None:
        """Takes one step of a script; `sample_phrases` explains the notation."""
        if isinstance(step, tuple):
            self.agenda[:0] = _likeliest_first(self.rng, step)
        elif " -> " in step:
            self.looks_up(step)
        elif step in SWITCHES:
            self.opens(step)
            self.replies(SWITCHES[step])
        elif step in QUESTIONS:
            self.asks(step)
        elif step.startswith("answer "):
            self.answers(step.removeprefix("answer "))
        elif step in PHRASES:
            self.says(step)
        elif not self.happens(SKIPPED_STEP):
            self.replies(step)

    def unfolds(self) -> list[dict[str, object]]:
        self.opens()
        self.greets()
        while self.agenda:
            self.takes(self.agenda.pop(0))
        return self.messages


def templates() -> list[dict[str, object]]:
    """All templates, the retired ones included, as `{"id", "text", "active"}`; texts hold `{placeholders}`."""
    return [{"id": id_, "text": text, "active": id_ not in INACTIVE} for id_, text in TEMPLATES.items()]


def cases(count: int, seed: int = 0) -> Iterator[dict[str, object]]:
    """Yields `count` transcript records; record i hangs on `seed` and i alone, whatever `count` is."""
    for i in range(1, count + 1):
        yield {"case_id": f"sample-{i:06}", "messages": _Case(Random(f"{seed}-{i}")).unfolds()}


def write(folder: Path, count: int, seed: int = 0) -> None:
    """Writes `transcripts.jsonl.gz` and `templates.json` into `folder`; the same arguments give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "transcripts.jsonl.gz").open("wb") as file, _gzip_text(file) as lines:
        for case in cases(count, seed):
            lines.write(json.dumps(case, ensure_ascii=False) + "\n")
    (folder / "templates.json").write_text(json.dumps(templates(), indent=1, ensure_ascii=False) + "\n", "utf-8")


def _gzip_text(file: io.BufferedWriter) -> io.TextIOWrapper:
    """Text into gzip without a name or a time in the header, so that bytes repeat."""
    return io.TextIOWrapper(gzip.GzipFile("", "wb", fileobj=file, mtime=0), encoding="utf-8")
