"""Tests of a server's lifecycle with real processes and signals: start, reload, drain, crash and restart."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bundles
import pytest
import serving
from imports import TRAINING, WITHOUT
from serving import MESSAGES, PATIENT, Answer, Server, served

from jaxtempl.bundle.bundle import Bundle
from jaxtempl.config.paths import ROOT

ADMIN = "the-admins-own"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.write_serving_bundle(tmp_path_factory.mktemp("process") / "bundle", window=64, buckets=[64])


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of another version: the same files, except for white space in the tokenizer."""
    made = bundles.write_serving_bundle(tmp_path_factory.mktemp("other") / "bundle", window=64, buckets=[64])
    return bundles.rewrite(made, "tokenizer.json", lambda text: json.dumps(json.loads(text)))


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    path = tmp_path / "admin"
    path.write_text(f"# of the admins\n{ADMIN}\n")
    return f"--admin_tokens={path}"


def version(folder: Path) -> str:
    return str(Bundle.open(folder).manifest["version"])


def admin(server: Server, what: str, **body: Any) -> Answer:
    return server.ask(f"/admin/{what}", body, Authorization=f"Bearer {ADMIN}")


@contextmanager
def load(ask: Callable[[int], Any], threads: int = 4) -> Generator[list[Any]]:
    """Send requests from several threads while the block runs; yield the list of their results."""
    found, ended = list[Any](), threading.Event()

    def work(thread: int) -> None:
        number = thread
        while not ended.is_set():
            found.append(ask(number))
            number += threads

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work, thread) for thread in range(threads)]
        try:
            yield found
        finally:
            ended.set()
        for future in futures:
            future.result()


def started(*flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "jaxtempl", "serve", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def said(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the only line of an error."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_server_that_cannot_start_is_a_one_line_error(folder: Path, tmp_path: Path) -> None:
    store = f"--store=sqlite:///{tmp_path}/e.sqlite"
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    (bad / "templates.json").write_text((bad / "templates.json").read_text().replace("Bye!", "Buy!"))
    with serving.socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for code, words, flags in [
            (2, "--bundle is missing; pass --bundle=DIR", []),
            (1, "is not a bundle", [f"--bundle={tmp_path}", "--port=0"]),
            (1, "differs from the manifest next to it", [f"--bundle={bad}", "--port=0"]),
            (1, "cannot be opened: Address already in use", [f"--bundle={folder}", f"--port={port}"]),
            (1, "has no token", [f"--bundle={folder}", "--port=0", "--tokens=/dev/null"]),
        ]:
            done = started(store, "--backend=fake", *flags)
            assert (done.returncode, words in said(done)) == (code, True), done.stderr


def test_help_needs_no_training_dependency() -> None:
    script = WITHOUT.format(missing=TRAINING | {"tensorflow_datasets", "onnx_ir"}, names=["jaxtempl.serve.server"])
    script += "from jaxtempl.__main__ import main\nsys.argv = ['jaxtempl', 'serve', '--help']\nmain()\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--bundle" in done.stdout


def test_telemetry_of_onnx_runtime_is_disabled_before_its_import() -> None:
    script = "import os, sys, jaxtempl; print('onnxruntime' in sys.modules, os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False 1\n"


def test_a_new_bundle_is_swapped_in_and_rolled_back(folder: Path, other: Path, tokens: str, tmp_path: Path) -> None:
    old, new = version(folder), version(other)
    assert old != new
    with served(folder, tmp_path / "e.sqlite", tokens) as server:
        assert server.suggest().json["model_version"] == old
        assert admin(server, "rollback").status == 422, "there must be no previous model"
        assert admin(server, "reload", bundle=str(other)).json == {"model_version": new}
        assert server.suggest().json["model_version"] == new
        assert server.metric(f'jaxtempl_model_info{{version="{new}"}}') == 1
        assert server.metric(f'jaxtempl_model_info{{version="{old}"}}') == 0
        assert admin(server, "rollback").json == {"model_version": old}
        assert server.suggest().json["model_version"] == old
        assert admin(server, "rollback").json == {"model_version": new}
        assert admin(server, "reload").json == {"model_version": new}, (
            "a reload without a bundle must read the current one again"
        )


def test_a_bad_bundle_is_refused_with_a_reason_and_the_old_one_still_serves(
    folder: Path, tokens: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    with (bad / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with served(folder, tmp_path / "e.sqlite", tokens) as server:
        for path, why in [
            (bad, "bytes, not"),
            (tmp_path, "is not a bundle"),
            (tmp_path / "nowhere", "is not a bundle"),
        ]:
            got = admin(server, "reload", bundle=str(path))
            assert (got.status, why in got.json["error"]) == (422, True), got
            assert server.suggest().json["model_version"] == version(folder)
        assert server.metric('jaxtempl_reloads_total{outcome="refused"}') == 3


def test_reloads_under_load_fail_no_request(folder: Path, other: Path, tokens: str, tmp_path: Path) -> None:
    versions = {version(folder), version(other)}
    with served(folder, tmp_path / "e.sqlite", tokens, "--fake_ms=2", PATIENT) as server:
        with load(lambda i: server.suggest(case=f"r-{i}")) as found:
            for i in range(12):
                assert admin(server, "reload", bundle=str((other, folder)[i % 2])).status == 200
        assert {each.status for each in found} == {200}
        assert {each.json["model_version"] for each in found} == versions
        assert len(found) > 12


def test_only_one_model_change_runs_at_a_time(folder: Path, tokens: str, tmp_path: Path) -> None:
    with served(folder, tmp_path / "e.sqlite", tokens, "--fake_ms=600") as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(admin, server, "reload")
        time.sleep(0.15)
        assert admin(server, "reload").status == 409
        assert admin(server, "rollback").status == 409
        assert first.result().status == 200


def test_sigterm_answers_pending_requests_and_loses_no_suggestion(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "e.sqlite"
    with served(folder, store, "--fake_ms=150", "--max_batch_size=1", PATIENT) as server, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(server.suggest, f"d-{i}") for i in range(5)]
        time.sleep(0.1)
        assert server.stop() == 0
        answers = [each.result() for each in waiting]
        assert {each.status for each in answers} == {200}
        with pytest.raises(urllib.error.URLError):
            server.ask("/livez")
    assert ids(store, "suggestions") == {each.json["suggestion_id"] for each in answers}


def test_a_server_killed_under_load_keeps_every_acknowledged_event(folder: Path, tmp_path: Path) -> None:
    """Clients see answers, then refused connections, then answers; the store keeps every acknowledged event."""
    store, port = tmp_path / "e.sqlite", serving.free_port()
    acknowledged = list[str]()
    current: list[Server] = []

    def ask(number: int) -> str:
        try:
            got = current[0].suggest(case=f"k-{number}")
            if got.status != 200:
                return f"status {got.status}"
            event = {"suggestion_id": got.json["suggestion_id"], "event": "shown", "at": datetime.now(UTC).isoformat()}
            if current[0].ask("/v1/events", event).status == 200:
                acknowledged.append(event["suggestion_id"])
            return "answered"
        except (OSError, urllib.error.URLError, serving.HTTPException):
            time.sleep(0.01)
            return "refused"

    with served(folder, store, PATIENT, port=port) as first:
        current.append(first)
        with load(ask) as found:
            time.sleep(0.6)
            first.stop(signal.SIGKILL)
            with served(folder, store, PATIENT, port=port) as second:
                current[0] = second
                time.sleep(0.6)
                before = len(found)
                assert second.suggest().status == 200
    assert set(found) <= {"answered", "refused", "status 503"}, set(found)
    assert found[0] == "answered"
    assert "refused" in found
    assert "answered" in found[before - 20 : before]
    assert len(acknowledged) > 20
    assert set(acknowledged) <= ids(store, "events")


def ids(store: Path, table: str) -> set[str]:
    connection = sqlite3.connect(store)
    try:
        return {row[0] for row in connection.execute(f"SELECT suggestion_id FROM {table}")}
    finally:
        connection.close()


def test_a_store_in_a_missing_folder_is_a_one_line_error(folder: Path, tmp_path: Path) -> None:
    done = started(f"--bundle={folder}", "--backend=fake", "--port=0", f"--store=sqlite:///{tmp_path}/no/e.sqlite")
    assert done.returncode == 1
    assert "cannot be used: unable to open database file" in said(done)
    assert MESSAGES[0]["text"] not in done.stdout
