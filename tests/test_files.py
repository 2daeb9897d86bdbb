from pathlib import Path

import pytest

from jaxtempl import files
from jaxtempl.errors import UserError


def test_a_file_takes_its_name_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    with pytest.raises(RuntimeError), files.atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []


def test_a_folder_takes_its_name_only_when_whole_and_an_older_one_stays_until_then(tmp_path: Path) -> None:
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


def test_an_existing_folder_is_not_written_over_unasked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"), files.atomic_folder(tmp_path):
        pass


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "link/out"])
def test_a_path_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="outside"):
        files.contained(folder, name)
    assert files.contained(folder, "a/b") == (folder / "a/b").resolve()


def test_json_says_its_format_and_a_newer_one_is_refused(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"x": 1})
    assert files.read_json(tmp_path / "a.json") == {"format": 1, "x": 1}
    files.write_json(tmp_path / "b.json", {"format": 2})
    with pytest.raises(UserError, match="reads up to 1"):
        files.read_json(tmp_path / "b.json")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", None])
def test_bad_json_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError):
        files.read_json(path)


def test_sums_see_one_changed_byte(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_bytes(b"abc")
    before = files.sums(tmp_path)
    (tmp_path / "sub" / "x").write_bytes(b"abd")
    assert before.keys() == files.sums(tmp_path).keys() == {"sub/x"}
    assert before != files.sums(tmp_path)
