"""The `prepare` command turns the transcripts of a small company into a dataset."""

import dataclasses
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core.example_serializer import ExampleSerializer

import jaxtempl
from jaxtempl.commands import prepare
from jaxtempl.config.data import PrepareConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.packing import Packer
from jaxtempl.errors import UserError
from jaxtempl.prepare import pipeline, tfds_builders
from jaxtempl.prepare.labels import REPLIES, ReplyCounter
from jaxtempl.prepare.split import SPLITS, LeakError, prove, split_of
from jaxtempl.text.cases import Message
from jaxtempl.text.formats import document
from jaxtempl.text.redaction.policy import Policy
from jaxtempl.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden"
ASSETS = Path(jaxtempl.__file__).parent / "assets"
PYTHIA = ASSETS / "tokenizers" / "pythia.json"
LENGTH = 64

TEMPLATES = [
    {"id": "greeting", "text": "Hello, how can I help?", "active": True},
    {"id": "retired", "text": "Please fax us.", "active": False},
    {"id": "never_sent", "text": "Nobody sends this.", "active": True},
]


def joined(lists: list[list[int]]) -> list[int]:
    return [item for some in lists for item in some]


def case(name: str, template: str | None = "greeting", reply: str = "Hello!", **more: Any) -> dict[str, Any]:
    messages = [
        {"role": "customer", "text": f"I am {name} and my card is lost."},
        {"role": "advocate", "text": reply, "template": template},
        {"role": "customer", "text": "Thanks"},
    ]
    return {"case_id": name, "messages": messages, **more}


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def config(tmp_path: Path, **changes: Any) -> PrepareConfig:
    defaults = {"out": tmp_path / "data", "tokenizer": str(PYTHIA), "length": LENGTH}
    return PrepareConfig(**{**defaults, **changes})


def prepared(tmp_path: Path, **changes: Any) -> Dataset:
    resolved = config(tmp_path, **changes)
    pipeline.run(resolved)
    return Dataset(resolved.out)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(PYTHIA)


@pytest.fixture(scope="module")
def given_split(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a dataset with every kind of record, which several tests read."""
    folder = tmp_path_factory.mktemp("given")
    train = [
        *(case(f"train-{i}", "greeting") for i in range(3)),
        *(case(f"rare-{i}", "rare", "Rare reply.") for i in range(1)),
        *(case(f"seen-{i}", "seen_often", "Often." if i else "Once.") for i in range(4)),
        case("retired-0", "retired", "Fax, please."),
        {"case_id": "first-is-label", "messages": [{"role": "advocate", "text": "Hi", "template": "greeting"}]},
        {"case_id": "blank", "messages": [{"role": "customer", "text": " "}, {"role": "customer", "text": "Hm"}]},
        case("copy-of-a-test-case", "greeting"),
        {"case_id": "bad"},
    ]
    test = [case("test-0", "greeting"), case("test-1", "rare"), case("test-2", "unknown")]
    test += [{**case("copy-of-a-test-case", "greeting"), "case_id": "test-3"}]
    return prepared(
        folder,
        train=(write(folder / "train.jsonl", *train),),
        validation=(write(folder / "validation.jsonl", case("validation-0", "seen_often")),),
        test=(write(folder / "test.jsonl", *test),),
        documents=(write(folder / "docs.jsonl", {"id": "d", "text": "A long article about cards. " * 20}),),
        templates=write_templates(folder),
        min_count=2,
        max_bad=0.1,
    )


def write_templates(folder: Path) -> str:
    (folder / "templates.json").write_text(json.dumps(TEMPLATES))
    return str(folder / "templates.json")


def documents(dataset: Dataset, tokenizer: Tokenizer, split: str) -> Iterator[str]:
    """Yield the texts of a split, reassembled from its rows."""
    rows = list(dataset.rows(tokenizer, split))
    tokens = np.concatenate([row["tokens"][row["segments"] > 0] for row in rows])
    ends = np.flatnonzero(tokens == tokenizer.end_of_text)
    assert ends[-1] == len(tokens) - 1
    for piece in np.split(tokens, ends + 1)[:-1]:
        yield tokenizer.decode(piece[:-1].tolist())


def test_cases_keep_their_order_and_text(given_split: Dataset) -> None:
    cases = given_split.cases("train")
    assert [entry.case_id for entry in cases][:2] == ["train-0", "train-1"]
    assert cases[0].messages[1] == Message("advocate", "Hello!", "greeting")
    assert cases[-1] == cases[len(cases) - 1]
    assert list(cases[1:3]) == [cases[1], cases[2]]
    assert len(given_split.cases("validation")) == 1
    with pytest.raises(IndexError):
        cases[len(cases)]


def test_slots_are_dense_and_ordered_by_the_templates_file_then_by_count(given_split: Dataset) -> None:
    rows = [
        (entry.slot, entry.id, entry.text, entry.active, entry.observed, entry.count) for entry in given_split.templates
    ]
    assert rows == [
        (0, "greeting", "Hello, how can I help?", True, False, 3),
        (1, "seen_often", "Often.", True, True, 4),
    ]
    counts = given_split.manifest["counts"]
    assert counts["templates_without_examples"] == 1
    assert counts["templates_under_min_count"] == 2


def test_labels_point_to_messages_that_have_a_context(given_split: Dataset) -> None:
    labels = given_split.labels("train")
    assert {array.dtype for array in labels} == {np.dtype(np.int32)}
    cases = given_split.cases("train")
    for index, message, slot in zip(*labels, strict=True):
        assert message > 0
        assert cases[index].messages[message].template == given_split.templates[slot].id
    assert len(labels.slot) == 7


def test_a_training_case_with_the_text_of_a_held_out_case_has_no_labels(given_split: Dataset) -> None:
    names = [entry.case_id for entry in given_split.cases("train")]
    labels = given_split.labels("train")
    assert names.index("copy-of-a-test-case") not in labels.case
    assert given_split.manifest["counts"]["labels_copied"] == {"train": 1, "validation": 0, "test": 0}
    assert given_split.templates[0].count == 3


def test_labels_under_min_count_are_dropped_in_training_and_wrong_in_evaluation(given_split: Dataset) -> None:
    assert given_split.labels("test").slot.tolist() == [0, -1, -1, 0]
    assert given_split.labels("validation").slot.tolist() == [1]
    counts = given_split.manifest["counts"]
    assert counts["labels_dropped"] == {"train": 2, "validation": 0, "test": 0}
    assert counts["labels_of_no_class"] == {"train": 0, "validation": 0, "test": 2}
    assert counts["skipped_labels"] == 1
    assert counts["dropped_messages"] == 1


def test_rows_hold_each_training_text_once_and_nothing_held_out(given_split: Dataset, tokenizer: Tokenizer) -> None:
    expected = [document(entry.messages) for entry in given_split.cases("train")]
    held_out = {document(entry.messages) for split in ("validation", "test") for entry in given_split.cases(split)}
    got = list(documents(given_split, tokenizer, "train"))
    assert sorted(got) == sorted(
        [text for text in expected if text not in held_out] + ["A long article about cards. " * 20]
    )
    assert not held_out & set(got)
    assert given_split.manifest["counts"]["duplicates_of_held_out"] == 1
    (only,) = documents(given_split, tokenizer, "validation")
    assert only == document(given_split.cases("validation")[0].messages)


def test_rows_have_fixed_length_and_restarting_segments(given_split: Dataset, tokenizer: Tokenizer) -> None:
    rows = given_split.rows(tokenizer, "train")
    for i in range(len(rows)):
        tokens, segments = rows[i]["tokens"], rows[i]["segments"]
        assert tokens.dtype == segments.dtype == np.uint16
        assert tokens.shape == segments.shape == (LENGTH,)
        real = segments[segments > 0]
        assert segments[0] == 1
        assert ((np.diff(real.astype(int)) == 1) == (tokens[: len(real) - 1] == tokenizer.end_of_text)).all()
        assert not tokens[segments == 0].any()
        assert (segments > 0).all() or i == len(rows) - 1


def test_the_manifest_states_counts_and_proofs(given_split: Dataset, tokenizer: Tokenizer) -> None:
    manifest = given_split.manifest
    counts = manifest["counts"]
    assert counts["records"] == {"good": 18, "quarantined": {"missing field": 1}}
    assert counts["rows"]["train"] == len(given_split.rows(tokenizer, "train"))
    assert counts["text_bytes"]["train"] == sum(
        len(text.encode()) for text in documents(given_split, tokenizer, "train")
    )
    assert manifest["proofs"]["texts"]["shared"] == manifest["proofs"]["cases"]["shared"] == 0
    assert manifest["proofs"]["texts"]["train"] == 12
    assert not list(given_split.folder.glob("*work*"))


def masked(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest without the values that differ between releases and folders."""
    sources = {
        flag: [{**source, "name": Path(source["name"]).name} for source in listed]
        for flag, listed in manifest["sources"].items()
    }
    versions = dict.fromkeys(manifest["versions"], "*")
    files = dict.fromkeys(manifest["files"], "*")
    return {**manifest, "sources": sources, "versions": versions, "files": files, "fingerprint": "*"}


@pytest.mark.parametrize("name", ["dataset_manifest.json", "dataset_templates.json", "quarantine.jsonl"])
def test_files_equal_the_golden_files(given_split: Dataset, name: str) -> None:
    """Users read these formats: change a golden file only on purpose, with a note in CHANGELOG."""
    got = {
        "dataset_manifest.json": lambda: json.dumps(masked(given_split.manifest), indent=1),
        "dataset_templates.json": lambda: (given_split.folder / "templates.json").read_text().rstrip(),
        "quarantine.jsonl": lambda: quarantine_line(given_split.folder / "quarantine.jsonl"),
    }[name]()
    assert got == (GOLDEN / name).read_text().rstrip()


def quarantine_line(path: Path) -> str:
    record = json.loads(path.read_text())
    return json.dumps({**record, "file": Path(record["file"]).name})


def test_two_runs_are_equal_and_the_seed_changes_the_rows_only(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write(tmp_path / "in.jsonl", *(case(f"c{i}") for i in range(60)))
    first, again, other = (
        prepared(tmp_path, transcripts=(source,), out=tmp_path / name, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert list(first.cases("train")) == list(other.cases("train"))
    texts = [list(documents(dataset, tokenizer, "train")) for dataset in (first, other)]
    assert texts[0] != texts[1]
    assert sorted(texts[0]) == sorted(texts[1])


def test_the_hash_split_depends_on_the_case_id_and_is_close_to_its_fractions(tmp_path: Path) -> None:
    records = [case(f"c{i}") for i in range(1000)]
    some = prepared(tmp_path, transcripts=(write(tmp_path / "in.jsonl", *records),), fractions=(0.5, 0.2, 0.3))
    sides = {split: {entry.case_id for entry in some.cases(split)} for split in SPLITS}
    assert [round(len(side) / 1000, 1) for side in sides.values()] == [0.5, 0.2, 0.3]
    assert len(set.union(*sides.values())) == 1000
    assert all(split_of(name, (0.5, 0.2, 0.3)) == split for split, side in sides.items() for name in side)


def test_two_percent_of_train_become_validation_where_none_is_given(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", *(case(f"c{i}") for i in range(500)))
    some = prepared(tmp_path, train=(train,), test=(write(tmp_path / "test.jsonl", case("t")),))
    assert 1 <= len(some.cases("validation")) <= 25
    assert len(some.cases("train")) + len(some.cases("validation")) == 500


def test_documents_without_cases_give_rows_without_labels(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [f"Article {i}. " * 5 for i in range(100)]
    source = write(tmp_path / "docs.jsonl", *({"id": str(i), "text": text} for i, text in enumerate(texts)))
    some = prepared(tmp_path, documents=(source,))
    got = [text for split in ("train", "validation") for text in documents(some, tokenizer, split)]
    assert sorted(got) == sorted(texts)
    assert len(some.cases("train")) == len(some.labels("train").slot) == len(some.templates) == 0


def test_a_leak_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtempl.prepare.corpus.is_allowed", lambda texts, held_out: np.ones(len(texts), bool))
    train = write(tmp_path / "train.jsonl", case("same"), case("b"))
    test = write(tmp_path / "test.jsonl", {**case("same"), "case_id": "other"})
    with pytest.raises(LeakError, match="1 texts are on the training side and held out"):
        prepared(tmp_path, train=(train,), test=(test,))
    assert not (tmp_path / "data").exists()


def test_a_case_on_both_sides_stops_the_run() -> None:
    names = np.array([b"a" * 16, b"b" * 16], "S16")
    with pytest.raises(LeakError, match="1 cases"):
        prove("cases", names, names[1:])


def test_a_case_in_both_files_is_kept_where_it_is_read_first(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", *(case(f"c{i}") for i in range(9)))
    test = write(tmp_path / "test.jsonl", case("c0", reply="Changed."), case("t"))
    some = prepared(tmp_path, train=(train,), test=(test,), max_bad=0.2)
    assert [entry.case_id for entry in some.cases("test")] == ["t"]
    assert some.manifest["counts"]["records"]["quarantined"] == {"duplicate case_id": 1}


def test_too_many_bad_records_leave_the_quarantine_list_but_no_dataset(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", case("a"), {"case_id": "b"}, case("c"))
    with pytest.raises(UserError, match=r"1 of 3 records are bad .* listed in .*data\.quarantine\.jsonl"):
        prepared(tmp_path, transcripts=(source,))
    assert not (tmp_path / "data").exists()
    assert json.loads((tmp_path / "data.quarantine.jsonl").read_text())["line"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.quarantine.jsonl", "in.jsonl"]


def test_a_damaged_file_is_refused_unless_it_is_named_and_then_the_manifest_names_it(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.jsonl", *(case(f"c{i}") for i in range(9)))
    (tmp_path / "b.jsonl").write_bytes(b'{"case_id": 1}\r' * 1000)
    with pytest.raises(UserError, match=r"b.jsonl cannot be read from line 1, byte 0: .*--allow_partial=FILE"):
        prepared(tmp_path, train=(str(tmp_path),))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]
    for wrong in (whole, str(tmp_path)):
        with pytest.raises(UserError, match="is not one of the files to read"):
            prepared(tmp_path, train=(str(tmp_path / "b.jsonl"),), allow_partial=(wrong,))
    some = prepared(tmp_path, train=(str(tmp_path),), allow_partial=(str(tmp_path / "b.jsonl"),), max_bad=0.0)
    complete, partial = some.manifest["sources"]["train"]
    assert "partial" not in complete
    assert partial["partial"] == "line 1, byte 0: several records in a line: lines end in CR alone; end them in LF"
    assert some.manifest["counts"]["records"] == {"good": 9, "quarantined": {"several records in a line": 1}}


def test_validation_rows_are_capped(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "HELD_OUT_TOKENS", 100.0)
    monkeypatch.setattr("jaxtempl.prepare.pack.DOCUMENTS", 1)
    cases = [case(f"c{i}") for i in range(50)]
    train, validation = write(tmp_path / "train.jsonl", case("t")), write(tmp_path / "v.jsonl", *cases)
    some = prepared(tmp_path, train=(train,), validation=(validation,))
    assert 100 <= some.manifest["counts"]["tokens"]["validation"] < 150
    assert len(some.cases("validation")) == 50
    assert (
        sum(len(text.encode()) for text in documents(some, tokenizer, "validation"))
        == (some.manifest["counts"]["text_bytes"]["validation"])
    )


def test_label_selects_another_key_of_the_messages(tmp_path: Path) -> None:
    records = [case("a"), case("b")]
    for record in records:
        record["messages"][1]["coarse"] = "any"
    source = write(tmp_path / "in.jsonl", *records)
    some = prepared(tmp_path, train=(source,), validation=(write(tmp_path / "v.jsonl", case("v")),), label="coarse")
    assert [entry.id for entry in some.templates] == ["any"]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "nothing to train on"),
    "test alone": ({"test": ("x",)}, "nothing to train on"),
    "both ways": ({"transcripts": ("x",), "test": ("x",)}, "transcripts and test are both given"),
    "fractions": ({"transcripts": ("x",), "fractions": (0.5, 0.6)}, "three shares"),
    "fraction sum": ({"transcripts": ("x",), "fractions": (0.5, 0.1, 0.6)}, "add up to 1"),
    "length": ({"transcripts": ("x",), "length": 1}, "length is 1"),
    "no tokenizer": ({"transcripts": ("x",), "tokenizer": "absent.json"}, "absent.json does not exist"),
    "no file": ({"transcripts": ("absent.jsonl",)}, "absent.jsonl names no file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_flag_is_reported_in_one_clear_line(tmp_path: Path, kind: str) -> None:
    changes, expected = WRONG[kind]
    with pytest.raises(UserError, match=expected) as error:
        prepared(tmp_path, **changes)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, "is not a list"),
        ([1], "entry 0: 'id' is None"),
        ([{"id": "a", "text": "", "active": True}], "entry 0: 'text' is ''"),
        ([{"id": "a", "text": "x", "active": "yes"}], "entry 0: 'active' is 'yes'"),
        ([{"id": "a", "text": "x", "active": True}] * 2, "'a' more than once"),
    ],
)
def test_a_wrong_templates_file_is_reported_in_one_clear_line(tmp_path: Path, entries: object, expected: str) -> None:
    (tmp_path / "t.json").write_text(json.dumps(entries))
    source = write(tmp_path / "in.jsonl", case("a"))
    with pytest.raises(UserError, match=expected):
        prepared(tmp_path, transcripts=(source,), templates=str(tmp_path / "t.json"))


def test_overwrite_replaces_a_dataset_and_nothing_else(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *(case(f"c{i}") for i in range(9)))
    first = prepared(tmp_path, transcripts=(source,))
    with pytest.raises(UserError, match="--overwrite"):
        prepared(tmp_path, transcripts=(source,))
    again = prepared(tmp_path, transcripts=(source,), overwrite=True)
    assert again.fingerprint == first.fingerprint
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not a dataset"):
        prepared(tmp_path, transcripts=(source,), overwrite=True, out=tmp_path / "home")
    (tmp_path / "home" / "manifest.json").write_text('{"kind": "run"}')
    with pytest.raises(UserError, match="is not a dataset"):
        prepared(tmp_path, transcripts=(source,), overwrite=True, out=tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_a_missing_dataset_is_reported_with_the_command_that_creates_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"bin/prepare --transcripts=PATH --out={tmp_path}"):
        Dataset(tmp_path)


def test_rows_of_another_tokenizer_are_refused(given_split: Dataset) -> None:
    with pytest.raises(UserError, match="prepare again with the model's --tokenizer"):
        given_split.rows(Tokenizer(ASSETS / "nano" / "tokenizer.json"), "train")


def test_an_unknown_split_is_refused(given_split: Dataset) -> None:
    with pytest.raises(UserError, match="one of train, validation, test"):
        given_split.labels("dev")


def test_tables_can_be_pickled(given_split: Dataset) -> None:
    cases = given_split.cases("train")
    first = cases[0]
    assert pickle.loads(pickle.dumps(cases))[0] == first


def test_replies_are_exact_while_few_and_bounded_when_many() -> None:
    replies = ReplyCounter()
    for text in ["b", "a", "b", "a"]:
        replies.add(text)
    assert replies.most_frequent() == "a"
    for i in range(10 * REPLIES):
        replies.add(f"odd {i}")
        replies.add("common")
    assert replies.most_frequent() == "common"
    assert len(replies._counts) == REPLIES


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(1, 99), max_size=30), max_size=12), st.integers(2, 16), st.integers(1, 5))
def test_packing_loses_no_token_for_any_block_size(lists: list[list[int]], length: int, block: int) -> None:
    packer = Packer(length)
    rows = []
    lists = [[*ids, 0] for ids in lists]
    for start in range(0, len(lists), block):
        some = lists[start : start + block]
        rows += packer.add(np.array(joined(some), np.uint16), np.array([len(ids) for ids in some], np.int64))
    rows += packer.finish()
    tokens = [row["tokens"][row["segments"] > 0] for row in rows]
    assert np.concatenate([np.empty(0), *tokens]).tolist() == joined(lists)
    assert len(rows) == -(-packer.tokens // length)


def test_prepare_reads_every_field_of_its_config() -> None:
    readers = [*Path(pipeline.__file__).parent.rglob("*.py"), Path(prepare.__file__)]
    source = "".join(path.read_text() for path in readers)
    names = {field.name for field in dataclasses.fields(PrepareConfig)} - set(pipeline.INPUTS)
    assert {name for name in names if f"config.{name}" not in source} == set()


def test_serialized_examples_equal_those_of_tfds(tmp_path: Path) -> None:
    numbers = np.arange(LENGTH)
    made = {
        tfds_builders.CaseBuilder(tmp_path, iter(())): {
            "case_id": "ü-1".encode(),
            "messages": b'[["customer","hi",null]]',
        },
        tfds_builders.LabelBuilder(tmp_path, iter(())): {
            name: numbers.astype(np.int32) for name in ("case", "message", "slot")
        },
        tfds_builders.RowBuilder(tmp_path, iter(()), "tokenizer", LENGTH): {
            name: numbers.astype(np.uint16) for name in ("tokens", "segments")
        },
    }
    for builder, example in made.items():
        features: Any = builder.info.features
        theirs = ExampleSerializer(features.get_serialized_info()).get_tf_example(features.encode_example(example))
        assert tfds_builders.serialize(example) == theirs.SerializeToString(deterministic=True)


@pytest.mark.parametrize("method", ["write", "close"])
def test_a_full_disk_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def full(self: object, *arguments: object) -> None:
        raise RuntimeError("write() failed: No space left on device; writing /x/test-0.partial; at byte 2220032")

    writer = type("Full", (), {"__init__": lambda *_: None, "write": lambda *_: None, "close": lambda *_: None})
    setattr(writer, method, full)
    monkeypatch.setattr(tfds_builders, "ArrayRecordWriter", writer)
    source = write(tmp_path / "in.jsonl", *(case(f"c{i}") for i in range(9)))
    with pytest.raises(UserError, match="data cannot be written: No space left on device"):
        prepared(tmp_path, transcripts=(source,))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("label", ["role", "text"])
def test_label_cannot_be_role_or_text(tmp_path: Path, label: str) -> None:
    with pytest.raises(UserError, match=f"label is '{label}'"):
        pipeline.run(config(tmp_path, transcripts=(write(tmp_path / "in.jsonl", case("a")),), label=label))


SECRETS = {
    "CARD": "4111 1111 1111 1111",
    "EMAIL": "anna@mail.example",
    "IBAN": "DE89370400440532013000",
    "SSN": "536-22-1234",
    "NAME": "Zorblax Quux",
}


def test_values_are_redacted_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, labels, templates, quarantine, manifest and output hold placeholders; the record's known values, too."""
    secret = " and ".join(SECRETS.values())
    messages = [
        {"role": "customer", "text": secret},
        {"role": "advocate", "text": f"Hi, {secret}", "template": "observed"},
    ]
    known = {"name": SECRETS["NAME"], "email": None}
    cases = [{"case_id": f"c{i}", "messages": messages, "known_values": known} for i in range(9)]
    bad = [{"case_id": "bad", "messages": [{"role": secret, "text": "x"}]}, "not JSON: " + secret]
    data = prepared(
        tmp_path,
        train=(write(tmp_path / "train.jsonl", *cases, *bad),),
        validation=(write(tmp_path / "validation.jsonl", case("v")),),
        test=(write(tmp_path / "test.jsonl", case("t")),),
        documents=(write(tmp_path / "docs.jsonl", {"id": "d", "text": secret.removesuffix(SECRETS["NAME"])}),),
        max_bad=0.9,
        redact="default",
    )
    expected = " and ".join(f"<{name}>" for name in SECRETS)
    assert [message.text for message in data.cases("train")[0].messages] == [expected, f"Hi, {expected}"]
    redaction = data.manifest["redaction"]
    assert redaction["counts"].items() >= {"IBAN": 19, "SSN": 19, "NAME": 18}.items()
    assert redaction["digest"] == Policy().digest
    assert data.templates[0].text == f"Hi, {expected}"
    pages = b"".join(path.read_bytes() for path in sorted(data.folder.rglob("*")) if path.is_file())
    written = pages.decode(errors="ignore") + capsys.readouterr().out
    assert not [value for value in SECRETS.values() if value in written]
    tokenizer = Tokenizer(PYTHIA)
    rows = " ".join(tokenizer.decode(row["tokens"].tolist()) for row in data.rows(tokenizer, "train"))
    assert "<CARD>" in rows
    assert not [value for value in SECRETS.values() if value in rows]


def test_numbered_placeholders_need_a_policy(tmp_path: Path) -> None:
    path = write(tmp_path / "cases.jsonl", *(case(str(i)) for i in range(9)))
    with pytest.raises(UserError, match="without a policy; pass --redact=default"):
        prepared(tmp_path, transcripts=(path,), number_placeholders=True)
