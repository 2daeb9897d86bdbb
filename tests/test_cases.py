"""Cases are read from every kind of file, and bad records are quarantined without losing a good one."""

import gzip
import json
import random
import tracemalloc
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtempl.errors import UserError
from jaxtempl.text import records as text_records
from jaxtempl.text.cases import Case, Message, parse_case
from jaxtempl.text.decoding import CaseDecoder
from jaxtempl.text.ingest import CaseReader, DigestSet, Quarantine, digest_of
from jaxtempl.text.sources import _name, find_files

GOOD = {
    "case_id": "a-1",
    "messages": [
        {"role": "customer", "text": "Where is my card?"},
        {"role": "system", "text": "lookup(card) -> shipped"},
        {"role": "advocate", "text": "It is on its way.", "template": "card_shipped", "at": "2024-01-01"},
    ],
    "region": "north",
}


def line(case_id: str, **changes: Any) -> bytes:
    return json.dumps({**GOOD, "case_id": case_id, **changes}).encode()


def message(**changes: Any) -> dict[str, Any]:
    return {"messages": [{"role": "customer", "text": "hi", **changes}]}


def read(
    tmp_path: Path, *paths: str, label: str = "template", partial: bool = False
) -> tuple[list[Case], list[dict[str, Any]], CaseReader]:
    """Return the good cases, the quarantined lines, and the reader with its counts; accept losses if `partial`."""
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    sources = [source for path in paths for source in find_files(path)]
    reader = CaseReader(quarantine, label, partial={source.name for source in sources} if partial else ())
    good = list(reader.cases(sources))
    bad = [json.loads(record) for record in quarantine.path.read_text().splitlines()]
    assert quarantine.good == len(good)
    assert quarantine.reasons.total() == len(bad)
    return good, bad, reader


def read_lines(
    tmp_path: Path, *lines: bytes, partial: bool = False
) -> tuple[list[Case], list[dict[str, Any]], CaseReader]:
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return read(tmp_path, str(tmp_path / "in.jsonl"), partial=partial)


def test_parse_case_keeps_id_roles_texts_and_templates() -> None:
    assert parse_case(GOOD) == Case(
        "a-1",
        (
            Message("customer", "Where is my card?"),
            Message("system", "lookup(card) -> shipped"),
            Message("advocate", "It is on its way.", "card_shipped"),
        ),
    )


def test_parse_case_takes_the_label_from_the_named_key() -> None:
    record = {"case_id": "x", "messages": [{"role": "advocate", "text": "hi", "template": "a", "template2": "b"}]}
    assert parse_case(record, "template2").messages[0].template == "b"
    assert parse_case(record, "absent").messages[0].template is None


def test_a_template_on_a_message_of_another_role_is_not_a_label() -> None:
    assert parse_case({"case_id": "x", **message(template="a")}).messages[0].template is None


BAD = {
    "not JSON": b'{"case_id": "b',
    "deep": b"[" * 100_000,
    "huge number": b'{"case_id": ' + b"9" * 5000 + b"}",
    "no object": b"[1, 2]",
    "missing case_id": json.dumps({"messages": GOOD["messages"]}).encode(),
    "empty case_id": line(""),
    "case_id a number": json.dumps({**GOOD, "case_id": 7}).encode(),
    "missing messages": b'{"case_id": "b"}',
    "messages an object": line("b", messages={}),
    "message a string": line("b", messages=["hi"]),
    "missing role": line("b", messages=[{"text": "hi"}]),
    "missing text": line("b", messages=[{"role": "customer"}]),
    "text null": line("b", **message(text=None)),
    "template a number": line("b", **message(role="advocate", template=3)),
    "unknown role": line("b", **message(role="agent")),
    "empty case": line("b", messages=[]),
    "blank case": line("b", **message(text=" \n\t")),
    "duplicate": line("a"),
    "invalid UTF-8": b'{"case_id": "b\xff", "messages": []}',
    "lone surrogate": line("b", **message(text="\ud800")),
    "lone surrogate in the id": line("b\udfff"),
}
REASONS = {
    "not JSON": "not JSON",
    "deep": "not JSON",
    "huge number": "not JSON",
    "no object": "wrong type",
    "missing case_id": "missing field",
    "empty case_id": "missing field",
    "case_id a number": "wrong type",
    "missing messages": "missing field",
    "messages an object": "wrong type",
    "message a string": "wrong type",
    "missing role": "missing field",
    "missing text": "missing field",
    "text null": "wrong type",
    "template a number": "wrong type",
    "unknown role": "unknown role",
    "empty case": "empty case",
    "blank case": "empty case",
    "duplicate": "duplicate case_id",
    "invalid UTF-8": "invalid UTF-8",
    "lone surrogate": "invalid text",
    "lone surrogate in the id": "invalid text",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_quarantined_and_no_good_record_is_lost(tmp_path: Path, kind: str) -> None:
    good, bad, _ = read_lines(tmp_path, line("a"), BAD[kind], line("z"))
    assert [case.case_id for case in good] == ["a", "z"]
    assert [(record["line"], record["reason"]) for record in bad] == [(2, REASONS[kind])]
    assert bad[0]["file"].endswith("in.jsonl")


def test_a_line_over_the_limit_is_skipped_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_records, "LINE_LIMIT", 1000)
    monkeypatch.setattr(text_records, "BLOCK", 64)
    long = line("long", **message(text="x" * 5000))
    good, bad, _ = read_lines(tmp_path, line("a"), long, line("z"), long, partial=True)
    assert [case.case_id for case in good] == ["a", "z"]
    assert [(record["line"], record["reason"]) for record in bad] == [(2, "line too long"), (4, "line too long")]


def test_unusual_but_valid_text_is_kept(tmp_path: Path) -> None:
    texts = ["a\x00b", "a\u2028b", "𝄞 ü", "<|endoftext|>", "line\nbreak", " spaced "]
    good, bad, _ = read_lines(tmp_path, *(line(f"{i}", **message(text=text)) for i, text in enumerate(texts)))
    assert [case.messages[0].text for case in good] == texts
    assert not bad


def test_blank_lines_and_a_byte_order_mark_are_not_records(tmp_path: Path) -> None:
    good, bad, _ = read_lines(tmp_path, b"\xef\xbb\xbf" + line("a"), b"", b"  ", line("b") + b"\r")
    assert [case.case_id for case in good] == ["a", "b"]
    assert not bad


def test_empty_messages_are_dropped_and_counted(tmp_path: Path) -> None:
    messages = [{"role": "customer", "text": " "}, *GOOD["messages"], {"role": "advocate", "text": ""}]
    good, _, reader = read_lines(tmp_path, line("a", messages=messages))
    assert len(good[0].messages) == 3
    assert reader.dropped_messages == 2


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zst)])
def test_plain_and_compressed_files_are_read(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"in.jsonl{suffix}"
    path.write_bytes(pack(line("a") + b"\n") + pack(line("b")))  # two members or frames, no newline at the end
    good, bad, _ = read(tmp_path, str(path))
    assert [case.case_id for case in good] == ["a", "b"]
    assert not bad


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zst)])
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_broken_archive_keeps_the_cases_before_the_break(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes], damage: str
) -> None:
    whole = pack(line("a") + b"\n")
    second = pack(b"\n".join(line(f"b{i}") for i in range(3000)))
    rest = second[: len(second) // 2] if damage == "cut" else b"\x00\xffnoise" * 9
    path = tmp_path / f"in.jsonl{suffix}"
    path.write_bytes(whole + rest)
    good, bad, _ = read(tmp_path, str(path), partial=True)
    assert good[0].case_id == "a"
    assert len(good) > 50 or damage == "noise", "cases before the break are kept"
    assert [record["reason"] for record in bad] == ["truncated archive"]


def joined(*lines: bytes, end: bytes = b"\n") -> bytes:
    return b"".join(line + end for line in lines)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


TEN = [line(f"b{i}") for i in range(10)]  # of 255 bytes each
RANDOM = random.Random(0).randbytes(20_000).hex().encode()  # half an archive of it holds half of it
LOST: dict[str, tuple[str, bytes, str]] = {  # suffix and bytes of a file, and the place of the loss
    "not gzip": ("jsonl.gz", joined(*TEN), "line 1, byte 0: truncated archive: .*, at byte 0 of the file"),
    "not zstd": ("jsonl.zst", joined(*TEN), "line 1, byte 0: truncated archive: .*, at byte 0 of the file"),
    "no bytes": ("jsonl.gz", b"", "line 1, byte 0: truncated archive: it ends early, at byte 0 of the file"),
    "only NULs": ("jsonl.gz", b"\0" * 5000, "line 1, byte 0: truncated archive: .*, at byte 0 of the file"),
    "noise after a member": ("jsonl.gz", gzip.compress(joined(*TEN)) + b"noise" * 9, "line 11, byte 2,560: trunc"),
    "cut gzip": ("jsonl.gz", cut(gzip.compress(joined(line("a"), RANDOM))), r"line 2, byte 255: .* at byte 1\d,\d{3} "),
    "cut zstd": ("jsonl.zst", cut(zst(joined(line("a"), RANDOM))), r"line 1, byte 0: .* at byte 1\d,\d{3} of the file"),
    "CR": ("jsonl", joined(*TEN, end=b"\r"), "line 1, byte 0: several records in a line: lines end in CR alone"),
    "CR after a bad record": ("jsonl", joined(b"{", *TEN, end=b"\r"), "line 1, byte 0: .* end in CR alone"),
    "no line ends": ("jsonl", joined(line("a")) + joined(*TEN, end=b" "), "line 2, byte 255: .* without a line end"),
    "a list": ("jsonl", joined(line("a")) + b"[" + b",".join(TEN) + b"]", "line 2, byte 255: .* a list"),
    "gzip without its suffix": ("jsonl", gzip.compress(joined(*TEN)), "line 1, .* is gzip; rename it to end in .gz"),
    "gzip in gzip": ("jsonl.gz", gzip.compress(gzip.compress(joined(*TEN))), "line 1, .* is gzip; rename it"),
    "zstd without its suffix": ("jsonl", zst(joined(*TEN)), "line 1, .* is zstd; rename it to end in .zst"),
    "UTF-16": ("jsonl", joined(*TEN).decode().encode("utf-16"), "line 1, .* is UTF-16; convert it to UTF-8"),
    "not Parquet": ("parquet", joined(*TEN), "row 1: truncated archive"),
}


@pytest.mark.parametrize("kind", LOST)
def test_a_loss_of_unknown_size_is_an_error_unless_it_is_accepted(tmp_path: Path, kind: str) -> None:
    suffix, content, place = LOST[kind]
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"b.{suffix} cannot be read from {place}.*--allow_partial=FILE") as error:
        read(tmp_path, str(path))
    assert "\n" not in str(error.value)
    (tmp_path / "quarantine.jsonl").unlink()
    _, bad, reader = read(tmp_path, str(path), partial=True)
    assert len(bad) == 1
    reader.quarantine.check(0.0, path)  # an accepted loss is not a bad record


def test_a_line_over_the_limit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_records, "LINE_LIMIT", 1000)
    monkeypatch.setattr(text_records, "BLOCK", 64)
    with pytest.raises(UserError, match=r"from line 2, byte 255: line too long: 5,\d{3} bytes, more than 1,000"):
        read_lines(tmp_path, line("a"), line("long", **message(text="x" * 5000)), line("z"))


@pytest.mark.parametrize("size", [1, 1024, 100_000])
def test_nul_padding_of_any_length_is_allowed_between_and_after_members(tmp_path: Path, size: int) -> None:
    padding = b"\0" * size
    members = [gzip.compress(joined(*TEN)), gzip.compress(joined(line("z")))]
    (tmp_path / "in.jsonl.gz").write_bytes(padding.join([*members, b""]))
    good, bad, _ = read(tmp_path, str(tmp_path / "in.jsonl.gz"))
    assert [case.case_id for case in good] == [*(f"b{i}" for i in range(10)), "z"]
    assert not bad


def parquet(path: Path, *records: dict[str, Any]) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(records)), path)


def test_parquet_and_json_lines_give_the_same_cases(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    parquet(path, GOOD, {**GOOD, "case_id": "b"}, {**GOOD, "messages": None, "case_id": "c"}, GOOD)
    good, bad, _ = read(tmp_path, str(path))
    assert good == [parse_case(GOOD), parse_case({**GOOD, "case_id": "b"})]
    assert [(record["line"], record["reason"]) for record in bad] == [(3, "wrong type"), (4, "duplicate case_id")]


def test_a_broken_parquet_file_counts_as_one_bad_record(tmp_path: Path) -> None:
    parquet(tmp_path / "in.parquet", GOOD)
    (tmp_path / "in.parquet").write_bytes((tmp_path / "in.parquet").read_bytes()[:-20])
    good, bad, _ = read(tmp_path, str(tmp_path / "in.parquet"), partial=True)
    assert not good
    assert [record["reason"] for record in bad] == ["truncated archive"]


def test_a_parquet_string_that_is_not_utf8_is_quarantined(tmp_path: Path) -> None:
    text = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    roles = pa.array(["customer", "customer"])
    messages = pa.ListArray.from_arrays([0, 1, 2], pa.StructArray.from_arrays([roles, text], ["role", "text"]))
    table = pa.table({"case_id": pa.array(["a", "b"]), "messages": messages})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    good, bad, _ = read(tmp_path, str(tmp_path / "in.parquet"))
    assert [case.case_id for case in good] == ["a"]
    assert [record["reason"] for record in bad] == ["invalid UTF-8"]


def test_a_parquet_date_outside_the_range_of_python_is_one_bad_record(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"messages": GOOD["messages"]}] * 2)
    at = pa.array([0, 2**62], pa.timestamp("us"))  # in the year 148,109
    pyarrow.parquet.write_table(table.append_column("case_id", at), tmp_path / "in.parquet")
    _, bad, _ = read(tmp_path, str(tmp_path / "in.parquet"))
    assert [record["reason"] for record in bad] == ["wrong type", "unreadable value"]


def test_a_file_inside_an_archive_is_read_and_names_hide_passwords(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in.jsonl", line("z") + b"\n{")
    good, bad, _ = read(tmp_path, f"zip://in.jsonl::{tmp_path}/a.zip")
    assert [case.case_id for case in good] == ["z"]
    assert [record["file"] for record in bad] == ["zip://in.jsonl"]
    signed = "http://user:secret@host.org:80/a/in.jsonl?key=secret"
    web = types.SimpleNamespace(protocol=("http", "https"), unstrip_protocol=lambda path: path)
    assert _name(web, signed) == "http://host.org:80/a/in.jsonl"


def test_a_path_may_be_a_folder_a_glob_a_stem_or_a_url(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "b.jsonl").write_bytes(line("b"))
    (folder / "c#1?.jsonl").write_bytes(line("c"))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(line("a")))
    (folder / "notes.txt").write_text("not transcripts")
    with fsspec.open("memory://prepare/m.jsonl.gz", "wb") as file:
        file.write(gzip.compress(line("m")))
    for path, expected in {
        str(folder): ["a", "b", "c"],
        f"{folder}/*.jsonl*": ["a", "b", "c"],
        f"{folder}/a": ["a"],
        f"file://{folder}/b.jsonl": ["b"],
        f"{folder}/c#1?.jsonl": ["c"],
        "memory://prepare/m": ["m"],
    }.items():
        assert [case.case_id for case in read(tmp_path, path)[0]] == expected


@pytest.mark.parametrize("path", ["absent", "absent/*.jsonl", "nosuch://x/y.jsonl"])
def test_a_path_without_files_is_a_clear_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match=path.replace("*", r"\*")):
        find_files(path if ":" in path else str(tmp_path / path))


def test_a_file_with_an_unsupported_suffix_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"cases.csv has none of the suffixes \.jsonl"):
        find_files(str(tmp_path / "cases.csv"))


def test_the_run_fails_above_max_bad(tmp_path: Path) -> None:
    _, _, reader = read_lines(tmp_path, line("a"), b"{", b"[", line("b"))
    reader.quarantine.check(0.5, tmp_path / "q")
    with pytest.raises(UserError, match=r"2 of 4 records are bad \(2 not JSON\), more than max_bad=0.49"):
        reader.quarantine.check(0.49, tmp_path / "q")


def test_bad_documents_are_quarantined(tmp_path: Path) -> None:
    records = [{"id": "a", "text": "one"}, {"id": "b"}, {"id": "a", "text": "again"}, {"id": "c", "text": " "}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, records)))
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    assert list(CaseReader(quarantine).documents(find_files(str(tmp_path / "in")))) == ["one"]
    assert dict(quarantine.reasons) == {"missing field": 1, "duplicate id": 1, "empty document": 1}


@settings(max_examples=25)
@given(st.lists(st.integers(0, 3000), max_size=300), st.integers(1, 7))
def test_digest_set_behaves_as_a_set(numbers: list[int], merge_every: int) -> None:
    ours, theirs = DigestSet(), set[int]()
    for i, number in enumerate(numbers):
        assert ours.add(digest_of(str(number).encode())) == (number not in theirs)
        theirs.add(number)
        if i % merge_every == 0:
            ours._merge()
    assert len(ours) == len(theirs)


def test_digest_set_distinguishes_trailing_zero_bytes() -> None:
    digests = DigestSet()
    assert digests.add(b"a" * 15 + b"\x00")
    digests._merge()
    assert digests.add(b"a" * 15 + b"\x01")
    assert not digests.add(b"a" * 15 + b"\x00")


def test_a_reader_keeps_about_16_bytes_for_each_case() -> None:
    """Only the digests grow with the cases: 16 bytes each, and a small share of them as Python objects."""
    digests = DigestSet()
    tracemalloc.start()
    for number in range(40_000):
        digests.add(number.to_bytes(16, "big"))
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(digests) == 40_000
    assert kept < 40_000 * 16 + 4096 * 160


ODD_VALUES = st.sampled_from(
    [None, True, 3, 1e400, "", " ", "a", "customer", "advocate", "\ud800", "é", "\x00", [], {}]
)
KEYS = st.sampled_from(["role", "text", "template", "other", "case_id"])
SAID = st.fixed_dictionaries({"role": st.sampled_from(["customer", "advocate"]), "text": st.text(max_size=3)})
MESSAGES = st.lists(st.builds(lambda a, b: a | b, SAID, st.dictionaries(KEYS, ODD_VALUES, max_size=2)), max_size=3)
RECORDS = st.builds(
    lambda record, odd: record | odd,
    st.fixed_dictionaries({"case_id": st.text(max_size=2), "messages": MESSAGES}),
    st.dictionaries(KEYS | st.just("messages"), ODD_VALUES, max_size=1),
)
NOISE = st.sampled_from([b"", b"\xff", b"{", b'"', b"\x01", b",", b"]", b" ", b"\\", b'"role":"agent",', b"NaN"])


@settings(max_examples=300)
@given(RECORDS, st.booleans(), NOISE, st.integers(0, 200), st.sampled_from(["template", "other"]))
def test_both_decoders_give_the_same_cases(record: Any, ascii: bool, noise: bytes, at: int, label: str) -> None:
    raw = json.dumps(record, ensure_ascii=ascii).encode(errors="surrogatepass")
    line = raw[: at % (len(raw) + 1)] + noise + raw[at % (len(raw) + 1) :]
    decoder = CaseDecoder(label)
    at_once = decoder._decode_typed(line)
    if at_once is not None:
        value = json.loads(line.decode())
        assert at_once[0] == parse_case(value, label)
        assert at_once[1] == len(value["messages"]) - len(at_once[0].messages)


def test_a_valid_line_takes_the_fast_path() -> None:
    assert CaseDecoder("template")._decode_typed(line("a", region="süd")) is not None


@pytest.mark.parametrize("key", ["case_id", "messages"])
def test_parse_case_names_the_missing_field(key: str) -> None:
    with pytest.raises(UserError, match=key):
        parse_case({name: value for name, value in GOOD.items() if name != key})
