"""Templates come and go: the difference of two lists, and slots that an ancestor's templates keep."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxtempl import cli, files
from jaxtempl.__main__ import command
from jaxtempl.config.data import PrepareConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.prepare import pipeline
from jaxtempl.text.cases import Template
from jaxtempl.text.templates import read_templates

OLD = {"a": "Hello, how can I help you today?", "b": "Please send the form.", "c": "Goodbye!"}
NEW = {"a2": "Hello! How can I help you today?", "b": "Please send us the form.", "d": "Your card is on its way."}


def listed(path: Path, texts: dict[str, str], retired: tuple[str, ...] = ()) -> Path:
    entries = [{"id": name, "text": text, "active": name not in retired} for name, text in texts.items()]
    path.write_text(json.dumps(entries))
    return path


def differ(tmp_path: Path, old: Path, new: Path) -> dict[str, Any]:
    assert cli.run(command("templates"), ("diff", str(old), str(new), f"--out={tmp_path}/diff.json")) == 0
    return files.read_json(tmp_path / "diff.json")


def test_a_diff_lists_added_retired_changed_and_renamed_templates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = differ(tmp_path, listed(tmp_path / "old.json", OLD), listed(tmp_path / "new.json", NEW))
    assert found == {
        "format": 1,
        "kind": "template diff",
        "added": {name: NEW[name] for name in ("a2", "d")},
        "retired": {name: OLD[name] for name in ("a", "c")},
        "changed": {"b": [OLD["b"], NEW["b"]]},
        "renamed": [{"old": "a", "new": "a2", "similarity": pytest.approx(0.9375, abs=0.01)}],
    }
    printed = capsys.readouterr().out
    assert "probably renamed: 1\n  a -> a2" in printed
    assert "text changed: 1\n  b  Please send the form. -> Please send us the form." in printed


def test_an_inactive_template_counts_as_retired_and_spaces_change_no_text(tmp_path: Path) -> None:
    old = listed(tmp_path / "old.json", {"a": "One  reply.", "b": "Other", "back": "Again"}, retired=("back",))
    new = listed(tmp_path / "new.json", {"a": "One reply.", "b": "Other", "back": "Again"}, retired=("b",))
    found = differ(tmp_path, old, new)
    assert [list(found[key]) for key in ("added", "retired", "changed", "renamed")] == [["back"], ["b"], [], []]


def test_each_template_is_in_one_renamed_pair(tmp_path: Path) -> None:
    text = "We have sent you a new card, which takes five working days."
    old = listed(tmp_path / "old.json", {"a": text, "b": f"{text}!"})
    found = differ(tmp_path, old, listed(tmp_path / "new.json", {"c": text, "d": f"{text}!"}))
    assert [(pair["old"], pair["new"], pair["similarity"]) for pair in found["renamed"]] == [
        ("a", "c", 1.0),
        ("b", "d", 1.0),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', "is not a list of templates"),
        ('[{"id": "a", "text": "x"}]', "is not a list of templates"),
        ('[{"id": "a", "text": "x", "active": true}, {"id": "a ", "text": "y", "active": true}]', "'a' more than once"),
        ('[{"id": "a\\nb", "text": "x", "active": true}]', "shorten or correct it"),
    ],
)
def test_a_faulty_list_is_one_line(
    tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.json").write_text(content)
    good = listed(tmp_path / "new.json", NEW)
    assert cli.run(command("templates"), ("diff", str(tmp_path / "old.json"), str(good))) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def case(name: str, template: str) -> dict[str, Any]:
    messages = [
        {"role": "customer", "text": f"I am {name} and my card is lost."},
        {"role": "advocate", "text": f"Reply of {template}.", "template": template},
    ]
    return {"case_id": name, "messages": messages}


def prepared(folder: Path, labels: str, ancestor: Path | None = None, **texts: str) -> Dataset:
    """Prepare a case for each letter, a template's id; `texts` is the user's list, which marks retired ones by `-`."""
    folder.mkdir()
    cases = folder / "cases.jsonl"
    cases.write_text("".join(json.dumps(case(f"{folder.name}-{i}", name)) + "\n" for i, name in enumerate(labels)))
    active = {name: text.removesuffix("-") for name, text in texts.items()}
    gone = tuple(name for name, text in texts.items() if text.endswith("-"))
    given = {"templates": str(listed(folder / "listed.json", active, gone))} if texts else {}
    config = PrepareConfig(
        train=(str(cases),),
        size="nano",
        length=64,
        out=folder / "data",
        slots_from=str(ancestor or ""),
        **given,
    )
    pipeline.run(config)
    return Dataset(config.out)


def slots(dataset: Dataset) -> dict[str, tuple[int, bool]]:
    templates: list[Template] = read_templates(dataset.folder / "templates.json")
    assert [template.slot for template in templates] == list(range(len(templates)))
    return {template.id: (template.slot, template.active) for template in templates}


def test_templates_of_an_ancestor_keep_their_slots(tmp_path: Path) -> None:
    first = prepared(tmp_path / "first", "aabbc", a="A", b="B")
    assert slots(first) == {"a": (0, True), "b": (1, True), "c": (2, True)}
    # b is on the list no more, c is observed again, d and e are new.
    second = prepared(tmp_path / "second", "abccde", first.folder, a="A", e="E")
    assert slots(second) == {"a": (0, True), "b": (1, False), "c": (2, True), "e": (3, True), "d": (4, True)}
    assert second.manifest["slots_from"] == files.sha256(first.folder / "templates.json")
    # c occurs no more; a retired template that still occurs stays retired without a list.
    third = prepared(tmp_path / "third", "abde", second.folder)
    assert slots(third) == {"a": (0, True), "b": (1, False), "c": (2, False), "e": (3, True), "d": (4, True)}
    # A list can bring a template back into its slot.
    fourth = prepared(tmp_path / "fourth", "ab", third.folder, a="A", b="B", c="C-")
    assert {name: slots(fourth)[name] for name in "abc"} == {"a": (0, True), "b": (1, True), "c": (2, False)}


def test_labels_have_the_ancestors_slots(tmp_path: Path) -> None:
    first = prepared(tmp_path / "first", "abc")
    second = prepared(tmp_path / "second", "cd", first.folder)
    assert sorted(second.labels("train").slot) == [2, 3]


def test_slots_from_needs_templates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cases.jsonl").write_text(json.dumps(case("one", "a")) + "\n")
    flags = (f"--transcripts={tmp_path}/cases.jsonl", f"--slots_from={tmp_path}/empty", f"--out={tmp_path}/data")
    assert cli.run(command("prepare"), flags) == 1
    assert "has no templates.json; name a finetune run or a bundle" in capsys.readouterr().err
