"""Atomic files and folders, contained paths, checksums and JSON files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxtempl import files
from jaxtempl.errors import UserError


def test_a_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    with pytest.raises(RuntimeError), files.atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []


def test_a_folder_appears_only_when_complete_and_replaces_the_old_one_then(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with files.atomic_folder(path) as temporary:
        (temporary / "old").touch()
    with pytest.raises(RuntimeError), files.atomic_folder(path, replace=True) as temporary:
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["old"]
    with files.atomic_folder(path, replace=True) as temporary:
        (temporary / "new").touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("context", [files.atomic_file, files.atomic_folder])
def test_a_full_disk_is_reported_with_the_name_of_what_is_written(tmp_path: Path, context: Callable[..., Any]) -> None:
    message = "a cannot be written: No space left on device"
    with pytest.raises(UserError, match=message) as error, context(tmp_path / "a"):
        Path("/dev/full").write_bytes(b"x")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(PermissionError), context(tmp_path / "a"):
        raise PermissionError


def test_an_existing_folder_is_not_replaced_by_default(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"), files.atomic_folder(tmp_path):
        pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../out", "outside"),
        ("a/../../out", "outside"),
        ("/etc/passwd", "outside"),
        ("a\0b", "outside"),
        ("out/file", "link"),
        ("within", "link"),
        ("a/loop", "link"),
        ("dangling", "link"),
    ],
)
def test_a_path_that_leaves_its_folder_or_follows_a_link_is_rejected(name: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    for link, target in {"out": "..", "within": "a", "a/loop": "loop", "dangling": "none"}.items():
        (folder / link).symlink_to(target)
    with pytest.raises(UserError, match=message):
        files.contained(folder, name)


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    assert files.contained(tmp_path / "link", "a/./b") == tmp_path / "in" / "a" / "b"


def test_a_files_size_and_checksum_are_verified(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    entry = {"bytes": 3, "sha256": files.sha256(path)}
    files.check_sum(path, entry)
    for wrong, message in {
        (3, "0" * 64): "differs from the manifest",
        (4, entry["sha256"]): "has 3 bytes, not 4",
        ("3", entry["sha256"]): "no size and sha256 of file",
        (3, None): "no size and sha256 of file",
    }.items():
        with pytest.raises(UserError, match=message):
            files.check_sum(path, dict(zip(entry, wrong, strict=True)))
    with pytest.raises(UserError, match="no size and sha256 of file"):
        files.check_sum(path, None)
    with pytest.raises(UserError, match="is missing"):
        files.check_sum(tmp_path / "none", entry)


def test_json_records_its_format_and_a_newer_one_is_rejected(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"x": 1})
    assert files.read_json(tmp_path / "a.json") == {"format": 1, "x": 1}
    files.write_json(tmp_path / "b.json", {"format": 3})
    with pytest.raises(UserError, match="reads up to 2"):
        files.read_json(tmp_path / "b.json")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 10**6, b"1" * 10**4, None])
def test_invalid_json_raises_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        files.read_json(path)
    assert "\n" not in str(error.value)


def test_oversized_json_is_rejected(tmp_path: Path) -> None:
    """The file is sparse: a terabyte long, but empty on disk."""
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"has 1,099,511,627,776 bytes; up to 67,108,864"):
        files.read_json(tmp_path / "a.json")


def test_checksums_detect_one_changed_byte(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_bytes(b"abc")
    before = files.sums(tmp_path)
    (tmp_path / "sub" / "x").write_bytes(b"abd")
    assert before.keys() == files.sums(tmp_path).keys() == {"sub/x"}
    assert before != files.sums(tmp_path)


@pytest.mark.parametrize(
    "end", [b'{"step": 3, "lo', b"\0" * 4096, b'{"step": 3}\0\0', b'{"name": "\xe2\x82', b"7\n", b"[" * 10**5]
)
def test_a_torn_line_is_left_out_and_stays_apart_from_the_next(
    tmp_path: Path, end: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    first, last = {"step": 1, "name": "a\u2028b"}, {"step": 4}
    files.append_line(path, first)
    with path.open("ab") as file:
        file.write(end)
    kept = [{"step": 3}] if b"3}" in end else []
    assert files.read_lines(path) == [first, *kept]
    files.append_line(path, last)
    capsys.readouterr()
    assert files.read_lines(path) == [first, *kept, last]
    assert capsys.readouterr().err.count("are left out: 1") == (not kept)
    files.write_lines(path, files.read_lines(path))
    capsys.readouterr()
    assert files.read_lines(path) == [first, *kept, last]
    assert capsys.readouterr().err == ""


def test_lines_of_no_file_are_none(tmp_path: Path) -> None:
    assert files.read_lines(tmp_path / "none.jsonl") == []
