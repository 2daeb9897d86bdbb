"""Message text never reaches a log line, a metric, the event store or an error, whatever the request's outcome."""

import gzip
import json
import logging
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import onnx
import pytest
from bundles import make_graph, write_bundle
from serving import Answer, Server, served
from wire import CHUNKED, CLOSE, HEAD, length, post, send, statuses

from jaxtempl.serve.logs import JsonLines

CANARY = "cnry4711"  # only letters and digits, so that no encoding changes it
RAW = CANARY.encode()
SAID = [{"role": "customer", "text": f"my number is {CANARY}", CANARY: CANARY, "template": CANARY}]
REQUEST: dict[str, Any] = {"case_id": "case-kept", "messages": SAID, CANARY: {CANARY: [CANARY]}}
BODY = json.dumps(REQUEST).encode()
INFER = "/v2/models/templates/infer"


def infer(*cases: str, **fields: Any) -> bytes:
    given = {"name": "case", "datatype": "BYTES", "shape": [len(cases)], "data": cases}
    return json.dumps({"inputs": [{**given, **fields}], CANARY: CANARY}).encode()


def event(**fields: Any) -> bytes:
    return json.dumps({"suggestion_id": "0" * 32, "event": "shown", "at": "2026-01-31T12:00:00Z", **fields}).encode()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "events.sqlite"


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a slow server with a queue of one; after the tests, check that none of their text was stored or logged."""
    folder = bundles.write_serving_bundle(tmp_path_factory.mktemp("privacy") / "bundle", window=64, buckets=[64])
    flags = ("--fake_ms=200", "--timeout_ms=300", "--max_batch_size=1", "--queue=1", "--max_body=5000")
    with served(folder, store, *flags) as running:
        yield running
        unheard(running, store)


def unheard(server: Server, store: Path) -> None:
    """Check that the canary is nowhere, before and after the server stops, and that expected records exist."""
    assert server.suggest("case-last", request_id="plain-id").status in (200, 504)
    left = [server.ask("/metrics", X_Request_Id="plain-id").body, server.ask("/none", X_Request_Id="plain-id").body]
    left += kept(store)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(server.ask, "/v1/suggest", BODY) for _ in range(3)]
        assert server.stop() == 0
        for each in waiting:
            left.append(each.result().body if each.exception() is None else str(each.exception()).encode())
    server.process.wait()
    log = "".join(server.log)
    left += [*kept(store), log.encode(), "".join(server.printed).encode()]
    assert not [part for part in left if RAW in part.lower()]
    assert all(word in log for word in ('"route":"suggest"', '"route":"infer"', '"status":422', "plain-id", "stopped"))
    assert any(b"case-kept" in part for part in left)


def kept(store: Path) -> list[bytes]:
    """Return the contents of SQLite's files: the database, the write-ahead log and its index."""
    return [path.read_bytes() for path in store.parent.iterdir()]


def unsaid(answer: Answer) -> int:
    """Return an answer's status after checking that the answer does not repeat the canary."""
    assert CANARY not in f"{answer.headers}{answer.body.decode()}".lower()
    return answer.status


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/suggest", BODY[:-1], 422),
        ("/v1/suggest", BODY + RAW, 422),
        ("/v1/suggest", RAW, 422),
        ("/v1/suggest", BODY.replace(b"my number", b"my \xff"), 422),
        ("/v1/suggest", BODY.replace(b"my number", rb"my \ud800"), 422),
        ("/v1/suggest", CANARY, 422),
        ("/v1/suggest", {**REQUEST, "messages": CANARY}, 422),
        ("/v1/suggest", {**REQUEST, "messages": {CANARY: CANARY}}, 422),
        ("/v1/suggest", {**REQUEST, "messages": [*SAID, CANARY]}, 422),
        ("/v1/suggest", {**REQUEST, "messages": [*SAID, {"role": CANARY, "text": CANARY}]}, 422),
        ("/v1/suggest", {**REQUEST, "messages": [*SAID, {"role": f"\n{CANARY}", "text": CANARY}]}, 422),
        ("/v1/suggest", {**REQUEST, "messages": [*SAID, {"role": "customer", "text": [CANARY]}]}, 422),
        ("/v1/suggest", {**REQUEST, "messages": [*SAID, {"role": "customer", CANARY: CANARY}]}, 422),
        ("/v1/suggest", {**REQUEST, "case_id": f"{CANARY}\0"}, 422),
        ("/v1/suggest", {**REQUEST, "case_id": CANARY * 100}, 422),
        ("/v1/suggest", {**REQUEST, "k": CANARY}, 422),
        ("/v1/suggest", {**REQUEST, "threshold": CANARY}, 422),
        ("/v1/suggest", {**REQUEST, "allowed": CANARY}, 422),
        ("/v1/events", event(suggestion_id=CANARY * 4), 422),
        ("/v1/events", event(event=CANARY), 422),
        ("/v1/events", event(at=CANARY), 422),
        ("/v1/events", event(position=CANARY), 422),
        ("/v1/events", event(**{CANARY: CANARY}), 404),
        (INFER, BODY, 422),
        (INFER, infer(RAW.decode()), 422),
        (INFER, infer(json.dumps({"messages": CANARY})), 422),
        (INFER, infer(json.dumps({"messages": [{"role": CANARY, "text": CANARY}]})), 422),
        (INFER, infer(BODY.decode(), name=CANARY), 422),
        (INFER, infer(BODY.decode(), datatype=CANARY), 422),
        (INFER, infer(BODY.decode(), shape=[CANARY]), 422),
        (INFER, infer(BODY.decode(), parameters={"shared_memory_region": [CANARY]}), 422),
        ("/admin/reload", {"bundle": CANARY}, 403),
        (f"/v1/{CANARY}", BODY, 404),
        (f"/{CANARY}?{CANARY}#{CANARY}", BODY, 404),
        (f"/v2/models/templates/versions/{CANARY}/infer?{CANARY}", BODY, 404),
        (f"/v2/models/{CANARY}/infer", BODY, 404),
        (f"/livez?{CANARY}", BODY, 405),
    ],
)
def test_a_rejected_request_is_not_repeated(path: str, body: Any, status: int, server: Server) -> None:
    assert unsaid(server.ask(path, body)) == status


def test_headers_and_oversized_bodies_are_not_repeated(server: Server) -> None:
    names = ("Authorization", "Cookie", "Referer", "User_Agent", CANARY)
    words: dict[str, Any] = dict.fromkeys(names, f"{CANARY} of a header")
    words |= {"X_Request_Id": f"{CANARY} is no plain name", "Content_Type": CANARY}
    assert unsaid(server.ask(f"/v1/model?{CANARY}", **words)) == 200
    assert unsaid(server.ask("/v1/suggest", BODY[:-1], **words)) == 422
    assert unsaid(post(server, f"/v1/suggest?{CANARY}", BODY + RAW * 1000)) == 413
    assert unsaid(server.ask("/v1/suggest", gzip.compress(BODY), Content_Encoding=CANARY)) == 415
    assert unsaid(server.ask(INFER, infer(BODY.decode()), Inference_Header_Content_Length=CANARY)) == 422


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (RAW + b"\r\n\r\n", [400]),
        (b"GET /%s HTTP/%s\r\n\r\n" % (RAW, RAW), [400]),
        (b"GET /livez" + HEAD + b"%s : %s\0\r\n\r\n" % (RAW, RAW), [400]),
        (b"POST /v1/suggest" + HEAD + CHUNKED + b"\r\n%s\r\n" % RAW, [400]),
        (b"POST /v1/suggest" + HEAD + length(len(BODY) + 1) + b"\r\n" + BODY, [408]),
        (b"GET /%s/" % RAW + HEAD + CLOSE + b"Upgrade: %s\r\n\r\n" % RAW, [404]),
        (b"%s /v1/suggest" % RAW.upper() + HEAD + b"\r\n", [400]),
    ],
)
def test_malformed_http_is_not_repeated(raw: bytes, expected: list[int], server: Server) -> None:
    answer = send(server, raw)
    assert statuses(answer) == expected
    assert RAW not in answer.lower()


def test_a_disconnected_client_leaves_no_text(server: Server) -> None:
    whole = b"POST /v1/suggest" + HEAD + length(len(BODY)) + b"\r\n" + BODY
    for sent in (whole, whole[:-1], whole[: len(BODY) // 2]):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(sent)


def test_answered_superseded_shed_and_late_requests_are_not_repeated(server: Server) -> None:
    def kserve(_: str) -> Answer:
        return server.ask(INFER, infer(BODY.decode()))

    def case(name: str) -> Answer:
        return server.ask("/v1/suggest", {**REQUEST, "case_id": name})

    asks: list[tuple[Callable[[str], Answer], str]] = [(case, "a"), (case, "b"), (case, "b"), (kserve, ""), (case, "c")]
    seen = {unsaid(server.ask("/v1/suggest", BODY))}
    with ThreadPoolExecutor(len(asks)) as pool:
        for _ in range(30):  # the outcome of each request depends on timing
            seen |= set(pool.map(lambda each: unsaid(each[0](each[1])), asks))
            if seen >= {200, 409, 429, 504}:
                break
    assert seen == {200, 409, 429, 504}


def test_only_the_fixed_text_of_a_librarys_log_is_kept() -> None:
    try:
        raise ValueError(CANARY)
    except ValueError as error:
        raised = (type(error), error, error.__traceback__)
    text = f"a request failed: %s\nits body: {CANARY}"
    line = JsonLines().format(logging.LogRecord("library", logging.ERROR, CANARY, 1, text, (CANARY,), raised))
    assert all(word in line for word in ("a request failed", "ValueError", "test_serve_privacy.py"))
    assert CANARY not in line


def test_requests_that_fail_in_the_network_are_not_repeated(tmp_path: Path) -> None:
    table = onnx.numpy_helper.from_array(np.ones((100, 7), np.float32), "table")
    model = make_graph(table)  # its table has only 100 rows, which a bundle that names it directly is refused for
    model.graph.node[0].input[1] = "ids"
    model.graph.node.insert(0, onnx.helper.make_node("Identity", ["input_ids"], ["ids"]))
    folder = write_bundle(tmp_path / "bundle", model, window=64, buckets=[64])
    (tmp_path / "store").mkdir()
    with served(folder, tmp_path / "store" / "events.sqlite", "--backend=onnx") as server:
        assert unsaid(server.ask("/v1/suggest", BODY)) == 500
        assert unsaid(server.ask(INFER, infer(BODY.decode()))) == 500
        assert server.metric("jaxtempl_failed_batches_total") == 2
        left = [server.ask("/metrics").body, *kept(tmp_path / "store" / "events.sqlite")]
        assert server.stop() == 0
        log = "".join(server.log)
    assert "batch failed" in log
    assert "indices element out of data bounds, idx=# must be" in log
    assert not [part for part in [*left, log.encode()] if RAW in part.lower()]
