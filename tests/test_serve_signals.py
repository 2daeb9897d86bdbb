"""Signals of a server's process: each drains, SIGUSR1 does nothing, and what is cut short is answered with 503."""

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bundles
import pytest
from serving import PATIENT, Server, served, until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.write_serving_bundle(tmp_path_factory.mktemp("signals") / "bundle", window=64, buckets=[64])


STOPPING = "the server is stopping; ask another one"


def levels(server: Server) -> set[str]:
    return {json.loads(line)["level"] for line in server.log if line.startswith("{")}


def is_closed(server: Server) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) != 0


def is_computing(server: Server) -> bool:
    return server.metric('jaxtempl_stage_seconds_count{stage="read"}') > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_drains(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    with (
        served(folder, tmp_path / "e.sqlite", "--fake_ms=300", PATIENT) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        server.process.send_signal(signal.SIGUSR1)
        waiting = pool.submit(server.suggest)
        until(lambda: is_computing(server))
        assert server.stop(number) == 0
        assert waiting.result().status == 200


def test_a_second_sigint_answers_503_and_closes_the_store(folder: Path, tmp_path: Path) -> None:
    flags = ("--fake_ms=500", "--max_batch_size=1", "--timeout_ms=60000")
    with served(folder, tmp_path / "e.sqlite", *flags) as server, ThreadPoolExecutor(30) as pool:
        waiting = [pool.submit(server.suggest, f"c-{i}") for i in range(30)]
        until(lambda: server.metric('jaxtempl_stage_seconds_count{stage="read"}') == 30)
        server.process.send_signal(signal.SIGINT)
        until(lambda: is_closed(server))
        assert server.stop(signal.SIGINT) == 0
        answers = [each.result() for each in waiting]
        cut_short = [answer for answer in answers if answer.status != 200]
        assert {(each.status, each.json["error"]) for each in cut_short} == {(503, STOPPING)}
        assert {each.headers["cache-control"] for each in answers} == {"no-store"}
        assert {each.headers["x-content-type-options"] for each in answers} == {"nosniff"}
        assert '"stopped"' in "".join(server.log)


def test_a_slow_body_is_no_error_of_the_server(folder: Path, tmp_path: Path) -> None:
    with served(folder, tmp_path / "e.sqlite", "--drain_seconds=1", "--timeout_ms=60000") as server:
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(b"POST /v1/suggest HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\nExpect: 100-continue\r\n\r\n")
            answers = slow.makefile("rb")
            assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"  # the server waits for the body
            assert server.stop() == 0
            assert answers.read().startswith(b"\r\nHTTP/1.1 503 ")
        assert "error" not in levels(server), server.log
