"""One rule of template ids: `prepare`, templates.json, the server and the event store agree on which ids exist."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_serving_bundle
from event_fixtures import commit, make_event, make_suggestion, open_store, read_rows
from tiny import template

from jaxtempl import files
from jaxtempl.bundle import bundle
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.config.data import PrepareConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UserError
from jaxtempl.prepare import pipeline
from jaxtempl.serve import schema
from jaxtempl.serve.events import tables
from jaxtempl.serve.inference.ranking import Ranker
from jaxtempl.text.cases import RecordError, template_id
from jaxtempl.text.decoding import CaseDecoder
from jaxtempl.text.templates import read_templates

REFUSED = ["a\nb", "a\tb", "a\0b", "a\x7fb", "x" * 201]


def test_an_id_is_stripped_and_a_blank_one_is_none() -> None:
    assert {template_id(value) for value in ("CARD", " CARD\n", "\u00a0CARD ")} == {"CARD"}
    assert template_id("a b") == "a b"
    assert [template_id(value) for value in ("", " ", "\n\t")] == [None, None, None]
    assert template_id("x" * 200) == "x" * 200


@pytest.mark.parametrize("name", REFUSED)
def test_an_id_that_cannot_be_kept_is_refused(name: str) -> None:
    with pytest.raises(RecordError, match=r"invalid template id: .* at most 200 characters"):
        template_id(name)


ACCEPTED = ["CARD", " CARD\n", "\ta\r\n", "\x85é\x85", "", " ", "\n", "x" * 200]


@pytest.mark.parametrize("name", [*ACCEPTED, *REFUSED])
def test_the_event_schema_accepts_the_ids_that_prepare_accepts(name: str) -> None:
    event = {"suggestion_id": "0" * 32, "event": "picked", "at": "2026-01-01T00:00:00Z", "template": name}

    def is_accepted(check: Callable[[], object]) -> bool:
        try:
            check()
        except (RecordError, schema.FieldError):
            return False
        return True

    body = json.dumps(event).encode()
    assert is_accepted(lambda: schema.decode(schema.Event, body)) == is_accepted(lambda: template_id(name))


def prepare(folder: Path, *names: str, templates: list[Any] | None = None, **changes: Any) -> Dataset:
    """Prepare a training case for each id."""
    lines = [
        {"case_id": f"{i}", "messages": [
            {"role": "customer", "text": f"hi {i}"}, {"role": "advocate", "text": "Hello!", "template": name}
        ]} for i, name in enumerate(names)
    ]  # fmt: skip
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    if templates is not None:
        (folder / "given.json").write_text(json.dumps(templates))
        changes["templates"] = str(folder / "given.json")
    config: dict[str, Any] = {
        "fractions": (1.0, 0.0, 0.0),
        "size": "nano",
        "length": 32,
        "out": folder / "data",
    } | changes
    pipeline.run(PrepareConfig(transcripts=(str(folder / "in.jsonl"),), **config))
    return Dataset(folder / "data")


def test_ids_that_differ_in_surrounding_whitespace_are_one_class(tmp_path: Path) -> None:
    given = [{"id": " CARD", "text": "Your card.", "active": True}]
    dataset = prepare(tmp_path, "CARD", "CARD ", " CARD\n", "card", " ", templates=given)
    assert [(t.id, t.count, t.observed) for t in dataset.templates] == [("CARD", 3, False), ("card", 1, True)]
    assert [case.messages[1].template for case in dataset.cases("train")] == ["CARD", "CARD", "CARD", "card", None]


def test_prepare_quarantines_ids_that_cannot_be_kept(tmp_path: Path) -> None:
    dataset = prepare(tmp_path, "CARD", *REFUSED, max_bad=0.9)
    assert [t.id for t in dataset.templates] == ["CARD"]
    assert dataset.manifest["counts"]["records"]["quarantined"] == {"invalid template id": len(REFUSED)}


def test_a_refused_id_is_reported_with_its_message() -> None:
    line = {"case_id": "a", "messages": [{"role": "advocate", "text": "Hi", "template": "a\nb"}]}
    with pytest.raises(RecordError, match=r"messages\[0\] 'a\\nb' \(3 characters\)"):
        CaseDecoder("template")(json.dumps(line).encode())


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([{"id": " ", "text": "x", "active": True}], "entry 0: 'id' is ' '; a str that is not blank"),
        ([{"id": "a", "text": " ", "active": True}], "entry 0: 'text' is ' '"),
        ([{"id": "a\nb", "text": "x", "active": True}], "entry 0: invalid template id: 'a"),
        ([{"id": name, "text": "x", "active": True} for name in ("a", "a ")], "has the id 'a' more than once"),
    ],
)
def test_a_templates_file_follows_the_rule(tmp_path: Path, entries: list[Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        prepare(tmp_path, "a", templates=entries)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["CARD ", "", *REFUSED])
def test_a_bundle_whose_ids_no_event_can_name_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_serving_bundle(tmp_path / "bundle")
    entries = files.read_json(folder / "templates.json")
    entries[0]["id"] = name
    files.write_json(folder / "templates.json", entries)
    (folder / "bundle.json").rename(tmp_path / "bundle.json")
    facts = files.read_json(tmp_path / "bundle.json")
    bundle.write_manifest(folder, {key: facts[key] for key in bundle.KEYS if key not in ("version", "files")})
    with pytest.raises(UserError, match="which events cannot refer to; prepare the transcripts again"):
        Bundle.open(folder)


def test_a_file_that_is_no_list_of_templates_is_reported(tmp_path: Path) -> None:
    (tmp_path / "templates.json").write_text('[{"slot": 0}]')
    with pytest.raises(UserError, match=r"templates.json is not a list of templates \(.*`id`"):
        read_templates(tmp_path / "templates.json")


def test_the_event_store_keeps_the_id_that_prepare_keeps(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'events.sqlite'}"
    answered = make_suggestion()
    sent = [make_event(answered, template=name) for name in ("CARD", " CARD\n")]
    with open_store(url) as store:
        store.add(answered)
        assert commit(store, *sent, make_event(answered, event="freehand", template=" ")) == [None] * 3
        [refused] = commit(store, make_event(answered, template="a\nb"))
    assert refused.field == "template"
    assert {(row["event"], row["template"]) for row in read_rows(url, tables.events)} == {
        ("picked", "CARD"), ("freehand", None)
    }  # fmt: skip
    assert len(read_rows(url, tables.events)) == 2, "the same event is stored once"


def test_an_allowed_id_may_have_surrounding_whitespace() -> None:
    ranker = Ranker("model", [template(0, "card"), template(1, "bye")], 1.0)
    assert [s.template for s in ranker.best(np.zeros(2), 5, [" card\n"])] == ["card"]
