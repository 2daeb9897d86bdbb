"""Recall, precision and speed of the default redaction policy on star: `JAXTEMPL_DATA=data python -m bench.redaction`.

Values are planted as by `bin/prepare --measure_redaction`. Speed is measured on whole cases: once for each context of a
case as it grows, as a server reads it, and once for each case, as `bin/prepare` reads it.
"""

import gzip
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from bench import common
from jaxtempl import files
from jaxtempl.prepare.measure.measure import format_table, measure, pooled, wilson
from jaxtempl.text.cases import Message
from jaxtempl.text.redaction.policy import CHECKED, Policy
from jaxtempl.text.redaction.redact import Redactor

CASES, HOSTS, COUNT, SEED = 500, 5000, 500, 0
PACKAGES = ("phonenumbers", "python-stdnum", "faker")
COUNTRIES = ("US", "GB", "DE")
POLICIES = {"checked types": Policy(types=CHECKED), "all types": Policy()}


def read_cases() -> list[list[Message]]:
    """Return the first cases of star's training side."""
    cases: list[list[Message]] = []
    with gzip.open(common.data() / "star" / "train.jsonl.gz", "rt") as lines:
        for line in lines:
            messages = [each for each in json.loads(line)["messages"] if each.get("text")]
            cases.append([Message(each["role"], each["text"]) for each in messages])
            if len(cases) == CASES:
                return cases
    return cases


def speed(policy: Policy, cases: Sequence[Sequence[Message]]) -> dict[str, Any]:
    """Return messages a CPU second of whole cases, and CPU milliseconds of a context whose last messages are new."""
    started = time.process_time()
    redactor = Redactor(policy)
    for case in cases:
        redactor.messages(case, {})
    prepared = time.process_time() - started
    redactor, contexts = Redactor(policy), 0
    started = time.process_time()
    for case in cases:
        for end in range(1, len(case) + 1, 2):
            redactor.messages(case[:end], {})
            contexts += 1
    served = time.process_time() - started
    messages = sum(map(len, cases))
    return {
        "messages": messages,
        "messages_per_cpu_second": messages / prepared,
        "context_ms": 1000 * served / contexts,
    }


# Arguments of star's look-ups that hold a person's name.
LOOKED_UP = re.compile(r"\b(?:Patient|Customer|Host|Guest|User|Full|Account)Name=([A-Z][a-z]+(?: [A-Z][a-z]+)?)[,)]")


def later_words(cases: Sequence[Sequence[Message]]) -> dict[str, int]:
    """Return the contexts in which a server, which has not seen the later messages, reads other text than training."""
    redactor, contexts, differ = Redactor(Policy()), 0, 0
    for case in cases:
        whole = redactor.messages(case, {})
        for end in (i for i, message in enumerate(case) if message.role == "advocate" and i):
            contexts += 1
            differ += redactor.messages(case[:end], {}) != whole[:end]
    return {"contexts": contexts, "differ": differ}


def real_names(cases: Sequence[Sequence[Message]]) -> dict[str, int]:
    """Return how many names in customers' own words are redacted; the agent's look-ups state which words are names."""
    redactor, names, found, left = Redactor(Policy()), set[str](), 0, 0
    for case in cases:
        known = {name for message in case if message.role == "system" for name in LOOKED_UP.findall(message.text)}
        names |= known
        customer = [message for message in case if message.role == "customer"]
        for before, after in zip(customer, redactor.messages(customer, {}), strict=True):
            for name in known:
                word = re.compile(rf"\b{re.escape(name)}\b")
                found += len(word.findall(before.text))
                left += len(word.findall(after.text))
    return {"distinct": len(names), "occurrences": found, "redacted": found - left}


def page(results: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    report, later, real = results["report"], results["later_words"], results["real_names"]
    share = wilson(real["redacted"], real["occurrences"])
    speeds = [
        f"| {name} | {row['messages_per_cpu_second']:,.0f} | {row['context_ms']:.3f} |"
        for name, row in results["speed"].items()
    ]
    countries = [
        f"| {country} | "
        + " | ".join(f"{pooled(report, name, 'unseen', country):.3f}" for name in ("NAME", "PHONE", "ADDRESS"))
        + " |"
        for country in COUNTRIES
    ]
    return "\n".join(
        [
            "# Redaction: recall, precision, speed",
            "",
            f"The default policy on faker's values of the USA, the United Kingdom and Germany, {COUNT} of each",
            "type, country and kind of frame, planted into messages of star. Recall is strict: every character counts.",
            "Unseen frames are sentences written after the rules; later changes of the rules were for forms of names,",
            "such as titles, not for frames. Intervals are Wilson's, 95 %; they take values as independent, and say",
            "nothing of sentences that stand in no frame.",
            "Faker's names are common ones, and its `KNOWN` values are listed in the case's record.",
            "Repeat with `JAXTEMPL_DATA=data python -m bench.redaction`.",
            "",
            *format_table(report).splitlines()[:-2],
            "",
            "Recall in unseen frames by country:",
            "",
            "| country | NAME | PHONE | ADDRESS |",
            "|---|---|---|---|",
            *countries,
            "",
            "A name that is found in a planted address counts as wrong.",
            "",
            f"In the customers' own words, {real['redacted']:,} of {real['occurrences']:,} occurrences of names are",
            f"redacted: {share:.3f}. Star's look-ups state which {real['distinct']} words are names. The rules' author",
            "had star in view.",
            "",
            f"Speed on {CASES} cases of star, and CPU milliseconds of a context that grew by two messages:",
            "",
            "| policy | messages a CPU second | ms a context |",
            "|---|---|---|",
            *speeds,
            "",
            f"In {later['differ']:,} of {later['contexts']:,} contexts a later message reveals a name that the context",
            "already holds: training reads a placeholder there, and a server the name.",
            "",
            common.describe(results["machine"]),
            "",
        ]
    )


def main() -> None:
    """Measure, and write docs/benchmarks/redaction.json and .md."""
    machine, cases = common.machine(PACKAGES), read_cases()
    hosts = [message.text for case in cases for message in case][:HOSTS]
    results = {
        "machine": machine,
        "policy": msgspec.to_builtins(Policy()),
        "report": files.plain(measure(Policy(), hosts, COUNT, SEED)),
        "speed": {name: speed(policy, cases) for name, policy in POLICIES.items()},
        "later_words": later_words(cases),
        "real_names": real_names(cases),
    }
    common.write("redaction", results, page(results))


if __name__ == "__main__":
    main()
