"""A seeded generator of support cases for Pennywren, an invented payments company.

No customer, advocate, template or merchant in it exists. The cases let every command run without outside data. They
are learnable but not trivial: the next template depends on the customer's message, on the result of a lookup and on the
advocate's habits, and some choices are random.
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

from jaxtempl.synthetic.tables import (
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
RETIREMENT = FIRST_DAY + timedelta(days=90)  # no inactive template is sent from here on
AUTOMATED_REPLY = (
    "Thanks for contacting Pennywren! We got your message and {advocate} will be with you shortly. "
    "For your safety, never share your password or a sign-in code."
)

# Probabilities, chosen so that a perfect model reaches a perfect top-5 but not a perfect top-1.
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
    """Draw an option with weights 1, 1/2, 1/3, ..., which have a long tail."""
    return rng.choices(options, [1 / rank for rank in range(1, len(options) + 1)])[0]


def _phrase(rng: Random, grammar: str) -> str:
    """Resolve `[a|b]` and `[macro]`, innermost first; an empty option leaves no double space."""
    while "[" in grammar:
        grammar = re.sub(r"\[([^][]*)\]", lambda m: rng.choice(MACROS.get(m[1], m[1]).split("|")), grammar, count=1)
    return " ".join(grammar.split())


def _lower(_: Random, text: str) -> str:
    return text.lower()


def _unpunctuated(_: Random, text: str) -> str:
    return re.sub(r"[.,?!'](?!\d|com)", "", text)


def _misspelt(rng: Random, word: str) -> str:
    """Drop, double or swap one letter; words with digits or signs carry facts and stay unchanged."""
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


# In order of application: text that an early style adds is misspelt and lower-cased too.
STYLES: tuple[Style, ...] = (_terse, _chatty, _polite, _emoji, _angry, _typos, _unpunctuated, _lower)


def _day(at: datetime, later: int) -> str:
    day = at + timedelta(days=later)
    return f"{MONTHS[day.month - 1]} {day.day}"


def _facts(rng: Random, at: datetime) -> dict[str, str]:
    """Draw the facts of a case at a point in time."""
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
    """A conversation in progress: its messages so far, and the agenda of steps that remain."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.at = FIRST_DAY + timedelta(seconds=rng.randrange(366 * 86400))
        self.facts = _facts(rng, self.at)
        self.habit = ADVOCATES.index(self.facts["advocate"])
        self.styles = [style for style in STYLES if rng.random() < 0.2]
        self.messages: list[dict[str, object]] = []
        self.answered: set[str] = set()  # questions that the customer has answered, asked or not
        self.agenda: Script = []
        self.untouched = list(FLOWS)

    def happens(self, probability: float) -> bool:
        return self.rng.random() < probability

    def add(self, role: str, text: str, **label: str | None) -> None:
        self.messages.append({"role": role, "text": text, **label, "at": self.at.isoformat()})
        self.at += timedelta(seconds=self.rng.randint(4, 90))

    def filled(self, grammar: str) -> str:
        return _phrase(self.rng, grammar).format_map(self.facts)

    def styled(self, text: str) -> str:
        for style in self.styles:
            text = style(self.rng, text)
        return " ".join(text.split())

    def say(self, *intents: str) -> None:
        """Let the customer express `intents`, in one message or in one each."""
        # Each intent is styled alone: a terse customer must not drop an answer that is never asked for again.
        texts = [self.styled(self.filled(self.rng.choice(PHRASES[intent]))) for intent in intents]
        for text in [" ".join(texts)] if self.happens(0.6) else texts:
            self.add("customer", text)

    def habitual(self, template: str) -> str:
        """Return the advocate's choice among equivalent templates; early cases use the retired ones."""
        options = SYNONYMS.get(template, [template])
        pick = self.rng.choice(options) if self.happens(OFF_HABIT) else options[self.habit % len(options)]
        return PREDECESSORS.get(pick, pick) if self.at < RETIREMENT else pick

    def reply(self, template: str) -> None:
        if self.happens(FREE_TEXT):
            self.add("advocate", self.filled(self.rng.choice(PHRASES["advocate_note"])), template=None)
        pick = self.habitual(template)
        self.add("advocate", self.filled(self.edited(TEMPLATES[pick])), template=pick)

    def edited(self, text: str) -> str:
        if not self.happens(EDIT):
            return text
        return self.rng.choice((f"{PHRASES['edit_before'][0]} {text}", f"{text} {PHRASES['edit_after'][0]}"))

    def look_up(self, lookup: str) -> None:
        if "lookup_" in lookup and self.happens(ANNOUNCED_LOOKUP):
            self.reply("LOOKING_INTO_IT")
        self.add("system", self.filled(lookup))

    def next_question(self) -> str | None:
        """Return the question that is next on the agenda, if the customer answers it unasked."""
        step = next(iter(self.agenda), None)
        return step if isinstance(step, str) and step in QUESTIONS and self.happens(SECOND_ANSWER) else None

    def answer(self, question: str) -> None:
        unasked = self.next_question()
        questions = [question, unasked] if unasked else [question]
        self.answered.update(questions)
        self.say(*(QUESTIONS[each] for each in questions))

    def ask(self, question: str) -> None:
        """Ask an open question; the answer may come late, or never if the customer changes the subject."""
        if question in self.answered:
            return
        self.reply(question)
        if self.happens(DIGRESSION):
            self.agenda[:0] = [*_likeliest_first(self.rng, DIGRESSIONS), f"answer {question}"]
        else:
            self.answer(question)

    def open(self, *before: str) -> None:
        """Let the customer open a flow, which replaces the agenda."""
        opening = _likeliest_first(self.rng, self.untouched)
        self.untouched.remove(opening)
        self.agenda = [*FLOWS[opening], {"one_of": WRAP_UP}]
        unasked = self.next_question()
        self.answered.update([unasked] if unasked else [])
        self.say(*before, opening, *([QUESTIONS[unasked]] if unasked else []))

    def greet(self) -> None:
        self.add("system", self.filled(AUTOMATED_REPLY))
        self.reply("GREETING")
        if self.happens(SMALL_TALK):
            self.say("small_talk")

    def take_step(self, step: Step) -> None:
        """Take one step of a script."""
        if isinstance(step, dict):
            self.agenda[:0] = _likeliest_first(self.rng, step["one_of"])
        elif " -> " in step:
            self.look_up(step)
        elif step in SWITCHES:
            self.open(step)
            self.reply(SWITCHES[step])
        elif step in QUESTIONS:
            self.ask(step)
        elif step.startswith("answer "):
            self.answer(step.removeprefix("answer "))
        elif step in PHRASES:
            self.say(step)
        elif not self.happens(SKIPPED_STEP):
            self.reply(step)

    def unfold(self) -> list[dict[str, object]]:
        self.open()
        self.greet()
        while self.agenda:
            self.take_step(self.agenda.pop(0))
        return self.messages


def templates() -> list[dict[str, object]]:
    """Return all templates, retired ones included, as `{"id", "text", "active"}`; texts contain `{placeholders}`."""
    return [{"id": id_, "text": text, "active": id_ not in INACTIVE} for id_, text in TEMPLATES.items()]


def cases(count: int, seed: int = 0) -> Iterator[dict[str, object]]:
    """Yield `count` transcript records; record i depends on `seed` and i alone."""
    for i in range(1, count + 1):
        yield {"case_id": f"sample-{i:06}", "messages": _Case(Random(f"{seed}-{i}")).unfold()}


def write(folder: Path, count: int, seed: int = 0) -> None:
    """Write `transcripts.jsonl.gz` and `templates.json` into `folder`; equal arguments give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "transcripts.jsonl.gz").open("wb") as file, _gzip_text(file) as lines:
        for case in cases(count, seed):
            lines.write(json.dumps(case, ensure_ascii=False) + "\n")
    (folder / "templates.json").write_text(json.dumps(templates(), indent=1, ensure_ascii=False) + "\n", "utf-8")


def _gzip_text(file: io.BufferedWriter) -> io.TextIOWrapper:
    """Return a text file over gzip, without a name or a time in the header, so that bytes repeat."""
    return io.TextIOWrapper(gzip.GzipFile("", "wb", fileobj=file, mtime=0), encoding="utf-8")
