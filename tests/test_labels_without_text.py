"""A labelled message that was logged without text keeps its label, and no reader invents a text for it."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from bundles import write_serving_bundle

from converters.tensorrt import convert
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.commands import suggest
from jaxtempl.config.converting import ConvertTensorrtConfig
from jaxtempl.config.data import PrepareConfig
from jaxtempl.config.paths import ASSETS
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.data.tapt import task_adaptive_rows
from jaxtempl.evaluation import baselines
from jaxtempl.loadtest import requests
from jaxtempl.prepare import pipeline
from jaxtempl.serve.inference.ranking import Ranker
from jaxtempl.serve.inference.suggester import Suggester
from jaxtempl.text import formats
from jaxtempl.text.cases import Message, RecordError, fill_texts, parse_case
from jaxtempl.text.decoding import CaseDecoder
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window

TOKENIZER = Tokenizer(ASSETS / "nano" / "tokenizer.json")
ABSENT = object()


def say(role: str, text: Any = ABSENT, template: str | None = None) -> dict[str, Any]:
    return {"role": role, **({} if text is ABSENT else {"text": text}), **({"template": template} if template else {})}


def case(name: str, *messages: dict[str, Any]) -> dict[str, Any]:
    return {"case_id": name, "messages": list(messages)}


LISTED = {"greet": "Hello, how can I help?"}
TRAIN = [
    case("known", say("customer", "1"), say("advocate", "", "greet"), say("customer", "2"), say("advocate", "", "bye")),
    case("unlisted", say("customer", "three"), say("advocate", None, "bye"), say("advocate", "Bye!", "greet")),
    case("first", say("advocate", " ", "bye"), say("advocate", template="bye"), say("customer", "four")),
    case("only labels", say("advocate", "", "greet"), say("advocate", "", "bye")),
    case("rare", say("customer", "five"), say("advocate", "", "rare"), say("advocate", "")),
    case("nothing", say("advocate", "", "bye")),
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("logged")
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in TRAIN))
    (folder / "validation.jsonl").write_text(json.dumps(case("v", say("customer", "six"), say("advocate", "", "bye"))))
    given = [{"id": name, "text": text, "active": True} for name, text in LISTED.items()]
    (folder / "templates.json").write_text(json.dumps(given))
    inputs = {split: (str(folder / f"{split}.jsonl"),) for split in ("train", "validation")}
    options: dict[str, Any] = {"min_count": 2, "max_bad": 0.2, "size": "nano", "length": 32, "out": folder / "data"}
    pipeline.run(PrepareConfig(**inputs, templates=str(folder / "templates.json"), **options))
    return Dataset(folder / "data")


@pytest.mark.parametrize("text", ["", " \n", None, ABSENT])
def test_both_decoders_keep_a_label_without_text(text: Any) -> None:
    record = case("a", say("customer", "hi"), say("advocate", text, "greet"), say("advocate", " "))
    decoder, line = CaseDecoder("template"), json.dumps(record).encode()
    assert decoder(line) == (parse_case(record), 1)
    assert decoder._decode_typed(line) == decoder(line)
    assert parse_case(record).messages == (Message("customer", "hi"), Message("advocate", "", "greet"))


@pytest.mark.parametrize("role", ["customer", "advocate"])
def test_a_message_without_label_needs_its_text(role: str) -> None:
    for message in (say(role, None), say(role), say(role, None, " ")):
        with pytest.raises(RecordError, match="'text'"):
            CaseDecoder("template")(json.dumps(case("a", message)).encode())


def test_a_case_in_which_nothing_has_text_is_empty() -> None:
    parsed = parse_case(TRAIN[-1])
    assert fill_texts(parsed, {"bye": "Bye!"}).messages == (Message("advocate", "Bye!", "bye"),)
    with pytest.raises(RecordError, match="empty case"):
        fill_texts(parsed, LISTED)


def test_every_label_is_kept_and_counted_by_what_became_of_it(dataset: Dataset) -> None:
    counts = dataset.manifest["counts"]
    assert counts["records"] == {"good": 6, "quarantined": {"empty case": 1}}
    assert counts["labels"] == {"train": 5, "validation": 1, "test": 0}
    assert counts["labels_dropped"]["train"] == 1
    assert counts["skipped_labels"] == 3, "two of `first`, and the first of `only labels`"
    assert counts["labels_with_template_text"] == 2
    assert counts["labels_without_text"] == 7
    assert counts["dropped_messages"] == 1
    cases = [*dataset.cases("train"), *dataset.cases("validation")]
    found = sum(message.template is not None for case in cases for message in case.messages)
    became = sum(counts["labels"].values()) + counts["labels_dropped"]["train"] + counts["skipped_labels"]
    assert found == became == 10  # fmt: skip


def test_a_class_may_have_no_text(dataset: Dataset) -> None:
    assert [(t.id, t.text, t.count) for t in dataset.templates] == [("greet", LISTED["greet"], 2), ("bye", "", 3)]
    assert dataset.manifest["counts"]["templates_without_text"] == 1


def test_the_text_of_a_listed_template_is_its_text_in_the_case(dataset: Dataset) -> None:
    first, second, *_ = dataset.cases("train")
    assert [m.text for m in first.messages] == ["1", LISTED["greet"], "2", ""]
    assert [m.text for m in second.messages] == ["three", "", "Bye!"]


def test_rows_hold_no_message_without_text(dataset: Dataset) -> None:
    rows = dataset.rows(TOKENIZER, "train")
    tokens = np.concatenate([row["tokens"][row["segments"] > 0] for row in rows]).tolist()
    documents = [text for text in TOKENIZER.decode(tokens).split("<|endoftext|>") if text]
    assert sorted(documents) == sorted([
        f"<CUSTOMER>: 1\n<ADVOCATE>: {LISTED['greet']}\n<CUSTOMER>: 2",
        "<CUSTOMER>: three\n<ADVOCATE>: Bye!",
        "<CUSTOMER>: four",
        f"<ADVOCATE>: {LISTED['greet']}",
        "<CUSTOMER>: five",
    ])  # fmt: skip


def test_windows_hold_no_message_without_text(dataset: Dataset) -> None:
    contexts = LabelledContexts.read(dataset, "train", Window(TOKENIZER, 32))
    texts = [TOKENIZER.decode(contexts[i].tokens) for i in range(len(contexts))]
    greet, bye = 0, 1
    assert list(zip(texts, contexts.slot.tolist(), strict=True)) == [
        ("1", greet), (f"1 {LISTED['greet']} 2", bye), ("three", bye), ("three", greet), (LISTED["greet"], bye),
    ]  # fmt: skip
    assert contexts.previous.tolist() == [-1, greet, -1, bye, greet], "the label is known, though not its text"


def test_a_message_without_text_is_not_counted_as_dropped_from_a_window() -> None:
    messages = [Message("customer", "word " * 40), Message("advocate", "", "bye"), Message("customer", "hi")]
    assert Window(TOKENIZER, 8).encode(messages) == Window(TOKENIZER, 8).encode([messages[0], messages[2]])
    assert Window(TOKENIZER, 8).encode(messages).dropped_messages == 1
    assert formats.classifier_texts(messages[1:]) == ["hi"], "the first text has no leading space"


def test_task_adaptive_rows_hold_no_message_without_text(dataset: Dataset) -> None:
    rows = task_adaptive_rows(dataset, TOKENIZER, "train", 32)
    tokens = np.concatenate([row["tokens"][row["segments"] > 0] for row in rows]).tolist()
    assert TOKENIZER.decode(tokens).split("<|endoftext|>")[:3] == [
        f"1 {LISTED['greet']} 2",
        "three",
        LISTED["greet"],
    ]


def test_baselines_read_no_message_without_text(dataset: Dataset) -> None:
    contexts = LabelledContexts.read(dataset, "train", Window(TOKENIZER, 32))
    assert baselines._views(contexts)[3].tolist() == ["customer_role three", *[baselines.NOTHING] * 2, "three", 1]


def test_load_test_requests_hold_no_message_without_text(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, TRAIN)))
    drawn = requests.draw_contexts(str(tmp_path / "in.jsonl"), 99, 0).messages
    texts = [[message["text"] for message in json.loads(context)["messages"]] for context in drawn]
    assert sorted(texts) == [["1"], ["1", "2"], ["five"], ["three"], ["three"]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle that lists a text for its first template, `greet`."""
    return Bundle.open(write_serving_bundle(tmp_path_factory.mktemp("bundle") / "made"))


def test_suggest_reads_the_text_of_a_listed_template(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ranker = Ranker("model", [tiny.template(0, "greet"), tiny.template(1, "bye", observed=True)], 1.0)
    suggester = Suggester(lambda ids: np.zeros(2, np.float32), Window(TOKENIZER, 32), ranker)
    monkeypatch.setattr(suggest, "_load", lambda config: (suggester, {}))
    record = case("a", say("customer", "hi"), say("advocate", "", "greet"), say("advocate", template="bye"))
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(record)))
    suggest.main(["--bundle=any", "--json", "-"])
    expected = TOKENIZER.encode([f"hi {tiny.REPLIES['greet']}"])[0]
    assert json.loads(capsys.readouterr().out)["tokens"] == len(expected)


def test_an_engine_is_verified_on_the_texts_of_listed_templates(bundle: Bundle, tmp_path: Path) -> None:
    name, text = bundle.templates[0].id, bundle.templates[0].text
    record = case("a", say("customer", "hi"), say("advocate", "", name), say("advocate", "", "unknown"))
    (tmp_path / "cases.jsonl").write_text(json.dumps(record))
    config = ConvertTensorrtConfig(cases=str(tmp_path / "cases.jsonl"), verify_contexts=1)
    assert convert.contexts(bundle, config).rows[0] == TOKENIZER.encode([f"hi {text}"])[0]
