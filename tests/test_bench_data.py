"""Tests of the benchmark data's converters, on one small dialogue in each repository's format."""

import gzip
import json
from pathlib import Path
from typing import Any

from bench.data import common, sgd, star
from jaxtempl.text.cases import parse_case

STAR: dict[str, Any] = {
    "DialogueID": 7,
    "CompletionLevel": "Complete",
    "Scenario": {"WizardCapabilities": [{"Task": "hotel"}, {"Task": "bank"}], "Happy": True, "MultiTask": True},
    "Events": [
        {"Agent": "UserGuide", "Action": "instruct", "Text": "Book a hotel"},
        {"Agent": "User", "Action": "utter", "Text": " Hello \u200b there "},
        {"Agent": "Wizard", "Action": "request_suggestions", "Text": "ask nme"},
        {"Agent": "Wizard", "Action": "pick_suggestion", "Text": "Your name?", "ActionLabel": "ask_name"},
        {"Agent": "Wizard", "Action": "select_task", "Task": "bank"},
        {"Agent": "Wizard", "Action": "pick_suggestion", "Text": "Bye.", "ActionLabel": "bye"},
        {"Agent": "Wizard", "Action": "query", "APIName": "search", "Constraints": [{"Stars": 'api.is_at_most("5")'}]},
        {"Agent": "KnowledgeBase", "Action": "return_item", "Item": {"Name": "Inn", "APIName": "x"}, "TotalItems": 3},
        {"Agent": "Wizard", "Action": "pick_suggestion", "Text": "Mine.", "ActionLabel": "custom"},
        {"Agent": "Wizard", "Action": "utter", "Text": ""},
    ],
}
TASKS = {"hotel": {"ask_name": "Your name?", "bye": "Bye."}, "bank": {"bye": "Bye."}, "taxi": {"bye": "Ciao."}}

SGD: dict[str, Any] = {
    "dialogue_id": "1_00000",
    "services": ["Banks_1"],
    "turns": [
        {"speaker": "USER", "utterance": "My balance?", "frames": []},
        {
            "speaker": "SYSTEM",
            "utterance": "You have $5.",
            "frames": [
                {
                    "service": "Banks_1",
                    "service_call": {"method": "CheckBalance", "parameters": {"account": "savings"}},
                    "service_results": [{"balance": "$5"}, {"balance": "$6"}],
                    "actions": [
                        {"act": "INFORM", "slot": "balance"},
                        {"act": "OFFER", "slot": ""},
                        {"act": "INFORM", "slot": "account"},
                    ],
                }
            ],
        },
    ],
}


def test_a_star_case_keeps_the_messages_and_the_selected_templates() -> None:
    made = star.case(STAR, TASKS)
    assert [(m["role"], m["text"], m.get("template"), m.get("template2")) for m in made["messages"]] == [
        ("customer", "Hello there", None, None),
        ("advocate", "Your name?", "ask_name", "hotel/ask_name"),
        ("advocate", "Bye.", "bye", "bank/bye"),
        ("system", "search(Stars=at most 5) -> Name=Inn [3 items]", None, None),
        ("advocate", "Mine.", None, None),
    ]
    assert parse_case(made).case_id == "star-7"


def test_a_star_template_has_its_most_frequent_text() -> None:
    assert star.templates(TASKS) == [
        {"id": "ask_name", "text": "Your name?", "active": True},
        {"id": "bye", "text": "Bye.", "active": True},
    ]


def test_an_sgd_template_is_named_after_its_acts_and_slots() -> None:
    made = sgd.case(SGD, "train")
    assert [(m["role"], m["text"], m.get("template")) for m in made["messages"]] == [
        ("customer", "My balance?", None),
        ("system", "CheckBalance(account=savings) -> balance=$5 [2 items]", None),
        ("advocate", "You have $5.", "Banks_1:INFORM(account,balance)+OFFER"),
    ]
    assert made["messages"][-1]["template2"] == "INFORM(account,balance)+OFFER"


def test_a_second_run_gives_the_same_bytes(tmp_path: Path) -> None:
    cases = [{**sgd.case(SGD, "train"), "case_id": str(i)} for i in range(50)]
    for name in ("a", "b"):
        common.save(tmp_path / name, cases, lambda made: common.split_of(made["case_id"]))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "dev.jsonl.gz",
        "test.jsonl.gz",
        "train.jsonl.gz",
    ]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        for line in gzip.decompress(path.read_bytes()).splitlines():
            parse_case(json.loads(line))
