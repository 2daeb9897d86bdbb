"""huggingface_hub's real client fetches from a stand-in for the hub, and without a network."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from folders import assert_same, saved

from jaxtempl import files
from jaxtempl.config.paths import ROOT
from jaxtempl.errors import UserError
from jaxtempl.huggingface import hub, load
from jaxtempl.text.pretrained import folder_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORIES = {
    "owner/model": {
        "config.json": b'{"model_type": "gpt_neox"}',
        "tokenizer.json": b"{}",
        "model.safetensors": b"the weights",
        "pytorch_model.bin": b"a pickle",
        "README.md": b"words",
    },
    "owner/pickled": {"config.json": b"{}", "pytorch_model.bin": b"a pickle"},
    "owner/encoder": {
        "modules.json": b'[{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]',
        "0_Transformer/config.json": b'{"model_type": "bert"}',
        "0_Transformer/model.safetensors": b"the weights",
        "0_Transformer/pytorch_model.bin": b"a pickle",
        "0_Transformer/vocab.txt": b"[PAD]",
        "0_Transformer/tokenizer_config.json": b"{}",
        "1_Pooling/config.json": b"{}",
    },
}
SCRIPT = """
import sys
from jaxtempl.huggingface import hub
from jaxtempl.errors import UserError
try:
    print(hub.fetch(sys.argv[1], sys.argv[2] or None, tensors=len(sys.argv) < 4))
except UserError as error:
    print("refused:", error)
"""


class Hub(BaseHTTPRequestHandler):
    """The endpoints that snapshot_download requests: a revision, its tree, and each file."""

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in REPOSITORIES:
            return self.send("RepoNotFound", {}, b"", body)
        stored, rest = REPOSITORIES[name], parts[4:] if parts[0] == "api" else parts[2:]
        if rest[1] not in ("main", "step1", COMMIT):
            return self.send("RevisionNotFound", {}, b"", body)
        if rest[0] == "revision":
            return self.send_json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": f} for f in stored]})
        if rest[0] == "tree":
            return self.send_json([tree_entry(path, content) for path, content in stored.items()])
        content = stored["/".join(rest[2:])]
        return self.send("", {"ETag": f'"{blob(content)}"', "X-Repo-Commit": COMMIT}, content, body)

    def send_json(self, value: Any) -> None:
        self.send("", {"Content-Type": "application/json"}, json.dumps(value).encode(), body=True)

    def send(self, fault: str, headers: dict[str, str], content: bytes, body: bool) -> None:
        self.send_response(404 if fault else 200)
        for key, value in {**headers, "X-Error-Code": fault, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def tree_entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": blob(content)}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(endpoint: str, home: Path, name: str, revision: str = "", *without: str) -> str:
    """Fetch in another process: huggingface_hub reads its environment when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    root = str(ROOT)
    environment = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": root}
    command = [sys.executable, "-c", SCRIPT, name, revision, *without]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("revision", ["", "step1"])
def test_a_repository_is_fetched_without_its_pickle(endpoint: str, tmp_path: Path, revision: str) -> None:
    folder = Path(fetch(endpoint, tmp_path, "owner/model", revision))
    got = {path.name: path.read_bytes() for path in folder.iterdir()}
    wanted = ("config.json", "tokenizer.json", "model.safetensors")
    assert got == {name: REPOSITORIES["owner/model"][name] for name in wanted}


def test_weights_are_read_from_the_hubs_cache(endpoint: str, tmp_path: Path) -> None:
    """In the cache, every file of a revision is a link. A tokenizer is fetched with the weights."""
    (tmp_path / "made").mkdir()
    saved(tmp_path / "made", shard_bytes=2000)
    (tmp_path / "made" / "tokenizer.json").write_bytes((hub.fetch("assets/nano") / "tokenizer.json").read_bytes())
    REPOSITORIES["owner/small"] = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    folder = Path(fetch(endpoint, tmp_path, "owner/small"))
    assert all(path.is_symlink() for path in folder.iterdir())
    assert_same(load.read(folder).params, load.read(tmp_path / "made").params)
    assert folder_tokenizer(folder).end_of_text == 0


def test_an_encoder_is_fetched_from_its_subfolder(endpoint: str, tmp_path: Path) -> None:
    """The files that describe it are fetched as links to the cache's blobs; its other modules are not."""
    folder = Path(fetch(endpoint, tmp_path, "owner/encoder"))
    assert folder.name == "0_Transformer"
    names = {"config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert {path.name for path in folder.parent.iterdir()} == {"0_Transformer", "modules.json"}
    assert files.downloaded(folder, "config.json").read_bytes() == b'{"model_type": "bert"}'


def test_a_description_is_fetched_without_tensors(endpoint: str, tmp_path: Path) -> None:
    folder = Path(fetch(endpoint, tmp_path, "owner/model", "", "without tensors"))
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json"}


def test_a_fetched_repository_is_read_without_a_network(endpoint: str, tmp_path: Path) -> None:
    folder = fetch(endpoint, tmp_path, "owner/model")
    assert fetch("http://127.0.0.1:9", tmp_path, "owner/model") == folder


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("owner/none", "", "refused: owner/none is neither a folder here nor open on the hub"),
        ("owner/model", "step2", "refused: owner/model has no revision 'step2'"),
        ("owner/pickled", "", "refused: owner/pickled at revision main has no safetensors"),
    ],
)
def test_a_missing_repository_or_revision_is_an_error(
    endpoint: str, tmp_path: Path, name: str, revision: str, message: str
) -> None:
    assert fetch(endpoint, tmp_path, name, revision).startswith(message)


def test_the_error_without_a_network_suggests_a_local_folder(tmp_path: Path) -> None:
    said = fetch("http://127.0.0.1:9", tmp_path, "owner/model")
    assert said.startswith("refused: owner/model could not be fetched")
    assert said.endswith("pass --weights=DIR")
    assert "\n" not in said


def test_local_and_embedded_folders_are_found(tmp_path: Path) -> None:
    assert hub.fetch(str(tmp_path)) == tmp_path
    assert (hub.fetch("assets/nano") / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "assets/none/deeper"])
def test_a_missing_folder_is_not_requested_from_the_hub(name: str) -> None:
    with pytest.raises(UserError, match="neither a folder here nor a hub id"):
        hub.fetch(name)
