"""Synthetic cases are repeatable, long-tailed, varied, and labelled with existing templates."""

import gzip
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest

from jaxtempl.synthetic import generator, tables
from jaxtempl.synthetic.tables import FLOWS, MACROS, PHRASES, QUESTIONS, SWITCHES, TEMPLATES, Script

Messages = list[dict[str, Any]]
CASES = 1000  # enough for the bounds on shares
DIGEST = "e0a96588e90453da4a686d440f5702c2a1281fab597d3e1644630d4acad6fafa"  # SHA-256 of the first 200 cases of seed 7


@pytest.fixture(scope="module")
def conversations() -> list[Messages]:
    records: list[dict[str, Any]] = list(generator.cases(CASES))
    return [record["messages"] for record in records]


@pytest.fixture(scope="module")
def replies(conversations: list[Messages]) -> Messages:
    return [m for messages in conversations for m in messages if m["role"] == "advocate"]


@pytest.fixture(scope="module")
def uses(replies: Messages) -> Counter[str]:
    return Counter(m["template"] for m in replies if m["template"])


def _texts(conversations: list[Messages], role: str) -> list[str]:
    return [m["text"] for messages in conversations for m in messages if m["role"] == role]


def _names(script: Script) -> Iterator[str]:
    for step in script:
        if isinstance(step, str):
            yield step
        else:
            yield from itertools.chain.from_iterable(map(_names, step["one_of"]))


def test_equal_seeds_give_equal_cases_and_other_seeds_give_others() -> None:
    assert list(generator.cases(20, seed=3)) == list(generator.cases(20, seed=3))
    assert list(generator.cases(20, seed=3)) != list(generator.cases(20, seed=4))


def test_the_cases_of_a_seed_never_change() -> None:
    lines = (json.dumps(case, ensure_ascii=False) + "\n" for case in generator.cases(200, seed=7))
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == DIGEST


def test_a_case_does_not_depend_on_the_count() -> None:
    assert list(generator.cases(5)) == list(generator.cases(50))[:5]


def test_case_ids_are_unique_and_have_the_documented_form() -> None:
    assert [case["case_id"] for case in generator.cases(3)] == ["sample-000001", "sample-000002", "sample-000003"]


def test_records_have_exactly_the_documented_keys(conversations: list[Messages]) -> None:
    for message in itertools.chain.from_iterable(conversations):
        label = {"template"} if message["role"] == "advocate" else set[str]()
        assert set(message) == {"role", "text", "at"} | label
        assert message["role"] in {"customer", "system", "advocate"}
        assert message["text"].strip()


def test_times_rise_within_a_case(conversations: list[Messages]) -> None:
    for messages in conversations:
        times = [datetime.fromisoformat(m["at"]) for m in messages]
        assert all(time.tzinfo for time in times)
        assert all(earlier < later for earlier, later in itertools.pairwise(times))


def test_the_customer_speaks_first_and_the_automated_reply_follows(conversations: list[Messages]) -> None:
    for messages in conversations:
        first_other = next(m for m in messages if m["role"] != "customer")
        assert messages[0]["role"] == "customer"
        assert first_other["role"] == "system"
        assert first_other["text"].startswith("Thanks for contacting Pennywren")


def test_no_text_contains_template_notation(conversations: list[Messages]) -> None:
    assert not [m["text"] for messages in conversations for m in messages if re.search(r"[][{}|]|  ", m["text"])]


def test_template_use_has_a_long_tail(uses: Counter[str]) -> None:
    total = uses.total()
    assert len(uses) >= 60
    assert sum(count for _, count in uses.most_common(10)) > 0.45 * total
    assert sum(count < 0.01 * total for count in uses.values()) >= 20


def test_every_template_sent_is_listed_and_every_active_one_is_sent(uses: Counter[str]) -> None:
    listed = generator.templates()
    assert len({t["id"] for t in listed}) == len(listed) == len(TEMPLATES)
    assert set(uses) <= {t["id"] for t in listed}
    assert {t["id"] for t in listed if t["active"]} <= set(uses)


def test_retired_templates_are_sent_only_before_their_retirement(replies: Messages) -> None:
    retired = {t["id"] for t in generator.templates() if not t["active"]}
    sent = [datetime.fromisoformat(m["at"]) for m in replies if m["template"] in retired]
    assert len(retired) >= 2
    assert sent
    assert max(sent) < generator.RETIREMENT


def test_some_replies_are_free_text_and_some_are_edited(replies: Messages) -> None:
    free = [m for m in replies if m["template"] is None]
    plain = [t for t in replies if t["template"] and "{" not in TEMPLATES[t["template"]]]
    edited = [m for m in plain if m["text"] != TEMPLATES[m["template"]]]
    assert 0.05 < len(free) / len(replies) < 0.3
    assert 0.05 < len(edited) / len(plain) < 0.2


def test_customers_write_several_messages_in_a_row(conversations: list[Messages]) -> None:
    runs = [
        sum(1 for _ in group)
        for messages in conversations
        for role, group in itertools.groupby(m["role"] for m in messages)
        if role == "customer"
    ]
    assert 0.02 < sum(run > 1 for run in runs) / len(runs) < 0.3


def test_lookups_occur_and_their_result_decides_the_reply(conversations: list[Messages]) -> None:
    after: dict[str, Counter[str]] = {"status=pending, due": Counter(), "reason=declined by": Counter()}
    for messages in conversations:
        for before, reply in itertools.pairwise(messages):
            for result, counter in after.items():
                if before["text"].startswith("lookup_transfer") and result in before["text"]:
                    counter[str(reply.get("template"))] += 1
    assert [counter.most_common(1)[0][0].rsplit("_WATCH")[0] for counter in after.values()] == [
        "TRANSFER_PENDING",
        "TRANSFER_BANK_DECLINED",
    ]


def test_customers_change_their_mind(conversations: list[Messages]) -> None:
    switched = [any(m.get("template") == "SWITCH_TOPIC" for m in messages) for messages in conversations]
    assert 0.01 < sum(switched) / len(switched) < 0.2


def test_a_question_answered_in_advance_is_not_asked(conversations: list[Messages]) -> None:
    lookups = [messages for messages in conversations if any("lookup_refund" in m["text"] for m in messages)]
    unasked = [messages for messages in lookups if all(m.get("template") != "ASK_AMOUNT" for m in messages)]
    assert 0.1 < len(unasked) / len(lookups) < 0.5


def test_customers_make_typos(conversations: list[Messages]) -> None:
    def words(text: str) -> set[str]:
        return set(re.findall(r"[a-z]+", text.lower().replace("'", "")))

    phrases = [*MACROS.values(), *itertools.chain(*PHRASES.values()), *itertools.chain(*tables.FACTS.values())]
    spelt = words(" ".join([*phrases, *tables.ADVOCATES, "example com"]))
    written = [w for text in _texts(conversations, "customer") for w in sorted(words(text)) if len(w) > 3]
    assert 0.005 < sum(w not in spelt for w in written) / len(written) < 0.1


def test_openings_vary_in_wording(conversations: list[Messages]) -> None:
    openings = [messages[0]["text"] for messages in conversations]
    assert len(set(openings)) > 0.85 * len(openings)
    assert 0.1 < sum(text == text.lower() for text in openings) / len(openings) < 0.6


def test_cases_have_the_length_of_a_chat(conversations: list[Messages]) -> None:
    words = [sum(len(m["text"].split()) for m in messages) for messages in conversations]
    assert 10 < sum(map(len, conversations)) / len(conversations) < 16
    assert 140 < sum(words) / len(words) < 250


def test_every_name_in_the_flows_exists() -> None:
    for flow in [*FLOWS.values(), *tables.DIGRESSIONS, *tables.WRAP_UP]:
        for name in _names(flow):
            known = name in PHRASES or name in TEMPLATES or name in tables.SYNONYMS
            assert known or " -> " in name, name
    assert set(FLOWS) | set(QUESTIONS.values()) | set(SWITCHES) <= set(PHRASES)
    assert set(QUESTIONS) | set(SWITCHES.values()) | set(tables.INACTIVE) <= set(TEMPLATES)


@pytest.mark.parametrize(
    ("style", "text", "styled"),
    [
        ("_lower", "Hi Sam", "hi sam"),
        ("_unpunctuated", "I can't, it's $4.50. Help?", "I cant its $4.50 Help"),
        ("_unpunctuated", "It's sam@example.com.", "Its sam@example.com"),
        ("_terse", "It failed. What now?", "It failed."),
    ],
)
def test_styles_keep_the_facts(style: str, text: str, styled: str) -> None:
    apply: Callable[[Any, str], str] = getattr(generator, style)
    assert apply(Random(0), text) == styled


def test_write_is_repeatable_to_the_byte(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        generator.write(tmp_path / "deep" / folder, count=20, seed=7)
    one, two = tmp_path / "deep" / "one", tmp_path / "deep" / "two"
    assert {p.name for p in one.iterdir()} == {"transcripts.jsonl.gz", "templates.json"}
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()
    assert (one / "transcripts.jsonl.gz").read_bytes()[4:8] == bytes(4)  # the gzip header holds no time


def test_write_holds_the_cases_and_the_templates(tmp_path: Path) -> None:
    generator.write(tmp_path, count=20, seed=7)
    with gzip.open(tmp_path / "transcripts.jsonl.gz", "rt", encoding="utf-8") as lines:
        assert [json.loads(line) for line in lines] == list(generator.cases(20, seed=7))
    assert json.loads((tmp_path / "templates.json").read_text(encoding="utf-8")) == generator.templates()
