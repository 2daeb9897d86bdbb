"""A malicious Hugging Face folder is refused with one line, before it costs time, memory or safety."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from folders import SMALL, assert_same, edit_config, saved
from safetensors.numpy import save_file

from converters.huggingface import export
from jaxtempl import files
from jaxtempl.errors import UserError
from jaxtempl.huggingface import checks, config, layout, load
from jaxtempl.text.pretrained import folder_tokenizer
from jaxtempl.text.tokenizer import Tokenizer

Edit = Callable[[Path], object]


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load.read(folder)
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < 4000
    return said


def place(folder: Path, name: str) -> None:
    """Assign a tensor of the index to the file `name`."""
    index = json.loads((folder / layout.INDEX).read_text())
    index["weight_map"]["embed_out.weight"] = name
    (folder / layout.INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd", "points outside"),
        ("../other.safetensors", "points outside"),
        ("sub/../../other.safetensors", "points outside"),
        ("a\0.safetensors", "points outside"),
        ("link.safetensors", "goes through a link"),
        ("linked/other.safetensors", "goes through a link"),
        ("pytorch_model.bin", "no safetensors and may be a pickle"),
    ],
)
def test_a_shard_must_be_a_file_of_the_folder_itself(tmp_path: Path, name: str, message: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    saved(folder, shard_bytes=2000)
    save_file({"embed_out.weight": np.zeros((17, 12), np.float32)}, tmp_path / "other.safetensors")
    (folder / "link.safetensors").symlink_to(
        sorted(folder.glob("model-*"))[0].name
    )  # refused even though its target is in the folder
    (folder / "linked").symlink_to("..")
    place(folder, name)
    assert message in refused(folder)


@pytest.mark.parametrize("name", ["config.json", layout.SINGLE])
def test_no_file_is_read_through_a_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    saved(tmp_path / "folder")
    (tmp_path / "folder" / name).rename(tmp_path / name)
    (tmp_path / "folder" / name).symlink_to(tmp_path / name)
    assert "goes through a link" in refused(tmp_path / "folder")


def test_a_tokenizer_is_not_read_through_a_link(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / layout.TOKENIZER).symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="goes through a link"):
        folder_tokenizer(tmp_path)


def cached(home: Path) -> Path:
    """Return a revision in the layout of the hub's cache: a folder of links to blobs."""
    snapshot, blobs = home / "models--o--m" / "snapshots" / "abc", home / "models--o--m" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    saved(snapshot, shard_bytes=2000)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..", "..", "blobs", str(number)))
    return snapshot


@pytest.mark.parametrize("name", ["../../blobs/0", "a\0.safetensors", "loop.safetensors"])
def test_an_index_in_the_hubs_cache_cannot_name_other_files(tmp_path: Path, name: str) -> None:
    snapshot = cached(tmp_path)
    (snapshot / "loop.safetensors").symlink_to("loop.safetensors")
    place(snapshot, name)
    assert ("goes through a link" if "loop" in name else "points outside") in refused(snapshot)


def test_links_of_the_hubs_cache_to_its_blobs_are_followed(tmp_path: Path) -> None:
    snapshot = cached(tmp_path)
    assert all(path.is_symlink() for path in snapshot.iterdir())
    (tmp_path / "other").mkdir()
    assert_same(load.read(snapshot).params, saved(tmp_path / "other"))
    (tmp_path / "short").symlink_to(snapshot)
    assert checks.check(tmp_path / "short")[:2] == (SMALL, "lm")


@pytest.mark.parametrize(
    "target", ["../other/config.json", "../../../config.json", "../../blobs/out", "../../blobs/a/b"]
)
def test_other_links_in_the_hubs_cache_are_not_followed(tmp_path: Path, target: str) -> None:
    """Targets: another revision, a file outside the cache, a blob that is a link, a folder among the blobs."""
    snapshot = cached(tmp_path)
    content = (snapshot / "config.json").read_text()
    (snapshot.parent / "other").mkdir()
    (snapshot.parents[1] / "blobs" / "a").mkdir()
    for path in (snapshot.parent / "other" / "config.json", tmp_path / "config.json"):
        path.write_text(content)
    (snapshot.parents[1] / "blobs" / "a" / "b").write_text(content)
    (snapshot.parents[1] / "blobs" / "out").symlink_to(tmp_path / "config.json")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(target)
    assert json.loads((snapshot / "config.json").read_text())["model_type"] == "gpt_neox", (
        "the link resolves to a valid config"
    )
    assert "goes through a link" in refused(snapshot)


class Harm:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", [layout.SINGLE, "model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_a_pickle_of_any_name_is_not_opened(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    (tmp_path / layout.SINGLE).unlink()
    (tmp_path / name).write_bytes(pickle.dumps(Harm(tmp_path / "harmed")))
    if name.startswith("model-"):
        (tmp_path / layout.INDEX).write_text(json.dumps({"weight_map": {"embed_out.weight": name}}))
    assert ("pickle" if name.endswith(".bin") else "damaged") in refused(tmp_path)
    assert not (tmp_path / "harmed").exists()
    pickle.loads((tmp_path / name).read_bytes())
    assert (tmp_path / "harmed").exists(), "the pickle is harmful when loaded"


def headed(header: Any, data: int = 0, size: int | None = None) -> bytes:
    """Return a safetensors file with a header that declares `size` bytes, by default its true size."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + bytes(data)


def tensor(shape: list[int], end: int, begin: int = 0) -> dict[str, Any]:
    return {"embed_out.weight": {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        headed({}, size=2**62),
        headed({}, size=1000),
        headed(tensor([2**20, 2**20], 2**42), data=64),
        headed(tensor([2**40, 2**40], 64), data=64),
        headed(tensor([4, 4], 32), data=64),
        headed(tensor([4, 4], 0, 64), data=64),
        headed(tensor([4, 4], 64), data=640),
        headed(tensor([-4, -4], 64), data=64),
        headed([1], data=64),
    ],
    ids=["empty", "huge header", "long header", "beyond", "overflow", "short", "backwards", "spare", "minus", "list"],
)
def test_a_header_that_contradicts_its_file_is_refused(tmp_path: Path, content: bytes) -> None:
    saved(tmp_path)
    (tmp_path / layout.SINGLE).write_bytes(content)
    assert "model.safetensors is missing or damaged" in refused(tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_hidden_layers": 10**9}, "config.json describes at least 12,000,000,000 tensors, the files have 28"),
        ({"num_hidden_layers": 10**30}, " tensors, the files have"),
        ({"vocab_size": 10**12}, " numbers, the files have"),
        ({"hidden_size": 12 * 10**30}, " numbers, the files have"),
        ({"intermediate_size": 10**30}, " numbers, the files have"),
        ({"num_attention_heads": 10**30}, "not a multiple"),
    ],
)
def test_a_model_larger_than_its_files_is_not_built(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    """Each model would exhaust the memory if it were built before the comparison."""
    saved(tmp_path)
    edit_config(tmp_path, **keys)
    assert message in refused(tmp_path)


@pytest.mark.parametrize("name", ["config.json", layout.INDEX, layout.TOKENIZER])
def test_a_json_file_of_absurd_size_is_not_read(tmp_path: Path, name: str) -> None:
    """The file is sparse: one tebibyte that takes no space on the disk."""
    saved(tmp_path, shard_bytes=2000)
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="bytes; up to 67,108,864 are read"):
        Tokenizer(tmp_path / name) if name == layout.TOKENIZER else load.read(tmp_path)


@pytest.mark.parametrize(
    "content", [[], 1, {"rope_parameters": [1]}, {"weight_map": []}, {"weight_map": {"embed_out.weight": 1}}]
)
def test_json_of_another_structure_is_reported_in_one_line(tmp_path: Path, content: Any) -> None:
    saved(tmp_path, shard_bytes=2000)
    of_index = isinstance(content, dict) and "weight_map" in content
    (tmp_path / (layout.INDEX if of_index else "config.json")).write_text(json.dumps(content))
    assert "fetch the folder again" in refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_position_embeddings", "2048"),
        ("use_parallel_residual", "no"),
        ("rotary_pct", float("inf")),
        ("rotary_pct", 2),
        ("rotary_emb_base", float("nan")),
        ("rotary_emb_base", "10000"),
        ("layer_norm_eps", None),
        ("layer_norm_eps", -1e-5),
        ("layer_norm_eps", 10**400),
    ],
)
def test_values_that_no_model_can_have_are_refused(key: str, value: Any) -> None:
    known = config.hugging_face_config(SMALL, "lm")
    known.pop("rope_parameters")
    with pytest.raises(UserError, match=f"{key} is"):
        config.architecture_from(known | {key: value})


def test_a_long_list_of_faults_is_shortened(tmp_path: Path) -> None:
    saved(tmp_path)
    save_file({f"unknown.{n}": np.zeros(5, np.float32) for n in range(2000)}, tmp_path / layout.SINGLE)
    assert "more faults" in refused(tmp_path)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the converter: shards and a manifest."""
    folder = tmp_path_factory.mktemp("converted")
    export.convert(tiny.make_run(folder / "run", []), 3, folder / "out", shard_bytes=600_000)
    return folder / "out"


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


READ = ["config.json", layout.INDEX, "model-00002-of-00002.safetensors", layout.TOKENIZER]


@pytest.mark.parametrize("name", READ)
def test_every_file_that_is_read_is_checked_against_the_manifest(converted: Path, tmp_path: Path, name: str) -> None:
    folder = copied(converted, tmp_path / "copy")
    assert checks.check(folder)[:2] == (tiny.ARCHITECTURE, "lm")
    path = folder / name
    path.write_text(path.read_text().replace("\n", " ", 1)) if path.suffix == ".json" else flip(path)
    assert path.stat().st_size == (converted / name).stat().st_size
    assert f"{name} differs from the manifest next to it" in refused(folder)
    path.write_bytes(path.read_bytes() + b" ")
    assert "bytes, not" in refused(folder)


def edited(**keys: Any) -> Edit:
    def edit(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited(files={}), "no size and sha256 of config.json"),
        (edited(files=None), "no size and sha256 of config.json"),
        (edited(files={"config.json": {"sha256": "x", "bytes": True}}), "no size and sha256 of config.json"),
        (lambda path: path.write_text("{"), "is not JSON"),
        (edited(format=3), "this release reads up to 2"),
    ],
)
def test_an_incomplete_manifest_is_refused(converted: Path, tmp_path: Path, edit: Edit, message: str) -> None:
    folder = copied(converted, tmp_path / "copy")
    edit(folder / layout.MANIFEST)
    assert message in refused(folder)


def test_weights_that_the_manifest_does_not_list_are_not_read(converted: Path, tmp_path: Path) -> None:
    """Without the check, the single file would be read instead of the shards."""
    folder = copied(converted, tmp_path / "copy")
    save_file({"embed_out.weight": np.zeros((4, 4), np.float32)}, folder / layout.SINGLE)
    assert "no size and sha256 of model.safetensors" in refused(folder)


def test_files_that_are_not_read_may_change_and_other_manifests_are_ignored(converted: Path, tmp_path: Path) -> None:
    folder = copied(converted, tmp_path / "copy")
    (folder / "README.md").write_text("my own words")
    (folder / "tokenizer_config.json").unlink()
    assert checks.check(folder)[:2] == (tiny.ARCHITECTURE, "lm")
    for other in ({"kind": "other", "files": {}}, ["config.json"]):
        (folder / layout.MANIFEST).write_text(json.dumps(other))
        assert checks.check(folder)[:2] == (tiny.ARCHITECTURE, "lm")


def test_the_manifest_lists_every_file(converted: Path) -> None:
    manifest = files.read_json(converted / layout.MANIFEST)
    assert (manifest["kind"], manifest["run"], manifest["step"], manifest["phase"]) == (
        "huggingface",
        "run",
        3,
        "adapt",
    )
    assert {*manifest["files"], layout.MANIFEST} == {path.name for path in converted.iterdir()}
    assert {*READ, "README.md"} <= manifest["files"].keys()
