"""Training and serving read one text: a bundle carries the policy of its data, and a canary is in no output."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny
from bundles import write_serving_bundle
from exported import export_bundle

from jaxtempl.bundle.bundle import Bundle
from jaxtempl.commands import suggest
from jaxtempl.config.data import PrepareConfig
from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.config.serving import ServeConfig
from jaxtempl.config.training import FinetuneConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UserError
from jaxtempl.evaluation import evaluate
from jaxtempl.prepare import pipeline
from jaxtempl.runs.run import Run
from jaxtempl.serve.events.store import Store
from jaxtempl.serve.metrics import Metrics
from jaxtempl.serve.schema import SuggestAnswer, SuggestRequest
from jaxtempl.serve.service import Service
from jaxtempl.text.cases import Message
from jaxtempl.text.redaction.policy import Policy
from jaxtempl.text.redaction.redact import Redactor
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window
from jaxtempl.training import finetune

RAW = [
    Message("customer", "hi, this is Zorblax, card 4111 1111 1111 1111"),
    Message("advocate", "Hello Zorblax!"),
    Message("customer", "my account is AB-12 34, write to z@mail.example"),
]
KNOWN = {"ACCOUNT": ["AB1234"]}
POLICY: dict[str, Any] = json.loads(msgspec.json.encode(Policy()))


def plain_ids(window: Window) -> list[int]:
    """Return the ids of the redacted messages in a window that does not redact."""
    return window.encode(Redactor(Policy()).messages(RAW, KNOWN)).ids


async def answer(folder: Path, store: Path, request: SuggestRequest) -> SuggestAnswer:
    service = Service(ServeConfig(backend="fake"), Store(f"sqlite:///{store}"), Metrics())
    try:
        await service.load(folder)
        return await service.suggest(request)
    finally:
        await service.close()


def request_of(messages: list[Message], known: dict[str, str]) -> SuggestRequest:
    every = [{"role": message.role, "text": message.text} for message in messages]
    return msgspec.convert({"case_id": "c", "messages": every, "known_values": known}, SuggestRequest)


def test_a_bundle_reads_the_text_that_its_data_held(tmp_path: Path) -> None:
    plain = Bundle.open(write_serving_bundle(tmp_path / "plain"))
    redacting = Bundle.open(write_serving_bundle(tmp_path / "redacting", redaction=POLICY))
    assert redacting.window.encode(RAW, KNOWN).ids == plain_ids(plain.window) != plain.window.encode(RAW, KNOWN).ids
    answered = asyncio.run(answer(redacting.folder, tmp_path / "db", request_of(RAW, {"account": "AB1234"})))
    assert answered.tokens == len(plain_ids(plain.window))


def test_a_bundle_with_a_policy_of_a_newer_release_is_not_served(tmp_path: Path) -> None:
    folder = write_serving_bundle(tmp_path / "b", redaction={**POLICY, "types": ["FACE"]})
    with pytest.raises(UserError, match="cannot apply the redaction policy: types has FACE"):
        asyncio.run(answer(folder, tmp_path / "db", request_of(RAW, {})))


def test_a_model_is_not_served_unless_the_policy_allows_it(tmp_path: Path) -> None:
    policy = {**POLICY, "model": str(tmp_path / "model"), "model_sha256": "0" * 64}
    folder = write_serving_bundle(tmp_path / "b", redaction=policy)
    with pytest.raises(UserError, match="prepare with serve_model: true in the policy, or leave the model out"):
        asyncio.run(answer(folder, tmp_path / "db", request_of(RAW, {})))
    allowed = write_serving_bundle(tmp_path / "allowed", redaction={**policy, "serve_model": True})
    with pytest.raises(UserError, match="no folder of a spaCy model"):
        asyncio.run(answer(allowed, tmp_path / "db", request_of(RAW, {})))


CANARIES = {
    "CARD": "4539 1488 0343 6467",
    "EMAIL": "canary7@birdcage.example",
    "IBAN": "GB82 WEST 1234 5698 7654 32",
    "SSN": "536-22-1234",
    "PHONE": "+44 20 7946 0958",
    "NAME": "Zorblax Quux",
}
PLANTED = "; ".join(CANARIES.values())


def leaks(*texts: str) -> list[str]:
    """Return the canaries in the texts, in the form of the case or without separators."""
    joined = "\n".join(texts)
    forms = {form for value in CANARIES.values() for form in (value, value.replace(" ", ""), json.dumps(value)[1:-1])}
    return sorted(form for form in forms if form in joined)


def contents(folder: Path) -> str:
    """Return all bytes below a folder as text."""
    return "".join(path.read_bytes().decode("latin-1") for path in sorted(folder.rglob("*")) if path.is_file())


def planted_case(number: int) -> dict[str, Any]:
    case = tiny.case(number, "refund")
    for message in case["messages"]:
        message["text"] += f" {PLANTED}"
        if message["template"]:
            message["template"] = f"observed-{message['template']}"
    return {**case, "known_values": {"name": CANARIES["NAME"]}}


@pytest.mark.slow
def test_canaries_are_in_no_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Rows, labels, templates, manifests, quarantine, run, report, bundle, events, logs and printed text (issue 20)."""
    (tmp_path / "in").mkdir()
    lines = [planted_case(i) for i in range(40)] + [{"case_id": "bad", "messages": [{"role": PLANTED}]}, PLANTED]
    source = tmp_path / "in" / "cases.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    out.mkdir()
    split = (0.6, 0.2, 0.2)
    made: dict[str, Any] = {"transcripts": (str(source),), "size": "nano", "length": 64, "fractions": split}
    pipeline.run(PrepareConfig(**made, max_bad=0.5, redact="default", out=out / "data"))
    data = Dataset(out / "data")
    assert data.manifest["redaction"]["counts"].keys() >= CANARIES.keys()
    tokenizer = Tokenizer(tiny.ASSETS / "nano" / "tokenizer.json")
    rows = [
        tokenizer.decode(row["tokens"].tolist())
        for name in ("train", "validation")
        for row in data.rows(tokenizer, name)
    ]
    assert any("<CARD>; <EMAIL>; <IBAN>; <SSN>; <PHONE>; <NAME>" in " ".join(row.split()) for row in rows)
    cases = [message.text for name in ("train", "test") for case in data.cases(name) for message in case.messages]
    tuning: dict[str, Any] = {"size": "nano", "weights": "random", "steps": 2, "batch_size": 4, "length": 64}
    tuned = finetune.finetune(FinetuneConfig(**tuning, data=data.folder, out=str(out / "run")))
    evaluate.evaluate(EvaluateConfig(run=str(tuned.folder), data=str(data.folder), batch_size=4))
    bundle = export_bundle(Run(tuned.folder), out / "bundle", data=str(data.folder))
    assert bundle.manifest["redaction"] == POLICY
    request = request_of([Message("customer", PLANTED)], {"name": CANARIES["NAME"]})
    asyncio.run(answer(bundle.folder, out / "events.sqlite", request))
    raw = tmp_path / "in" / "case.json"
    raw.write_text(json.dumps(planted_case(1)))
    suggest.main([f"--bundle={bundle.folder}", str(raw)])
    suggest.main([f"--run={tuned.folder}", str(raw)])
    with sqlite3.connect(out / "events.sqlite") as database:
        events = "".join(database.iterdump())
    printed = capfd.readouterr()
    assert leaks(*rows, *cases, contents(out), events, printed.out, printed.err) == []
    assert "<CARD>" in cases[0]
    assert leaks(source.read_text())  # the check finds what it looks for
