"""Malformed and oversized HTTP is rejected or closed, and valid requests still succeed."""

import gzip
import json
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from bundles import write_serving_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from require import missing
from serving import MESSAGES, Server, served
from wire import CHUNKED, CLOSE, HEAD, PATHS, length, post, send, statuses

from jaxtempl.config.serving import ServeConfig

MOST = ServeConfig.max_body
SLOW_MS = 700
REQUEST: dict[str, Any] = {"case_id": "c", "messages": MESSAGES}
BODY = json.dumps(REQUEST).encode()
POST = b"POST /v1/suggest" + HEAD
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n"  # of HttpClient
CHUNKS = b"%x\r\n%s\r\n" * 2 % (9, BODY[:9], len(BODY) - 9, BODY[9:]) + b"0\r\n\r\n"
JAVA = """
import java.net.URI;
import java.net.http.*;

public class Client {
    public static void main(String[] arguments) throws Exception {
        var known = HttpRequest.BodyPublishers.ofString(arguments[1]);
        for (var body : new HttpRequest.BodyPublisher[] {known, HttpRequest.BodyPublishers.fromPublisher(known)}) {
            var request = HttpRequest.newBuilder(URI.create(arguments[0])).POST(body).build();  // the second in chunks
            System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
        }
    }
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """One server for all tests. At the end it still responds, and its log has no unexpected error."""
    folder = tmp_path_factory.mktemp("wire")
    (folder / "admin").write_text("admin")
    flags = f"--admin_tokens={folder / 'admin'}", f"--timeout_ms={SLOW_MS}"
    with served(write_serving_bundle(folder / "bundle"), folder / "events.sqlite", *flags) as found:
        yield found
        assert found.suggest().status == 200
        assert not [line for line in found.log if '"level":"error"' in line or "Traceback" in line]


@pytest.mark.parametrize("path", PATHS)
def test_other_methods_are_rejected(path: str, server: Server) -> None:
    head: dict[str, Any] = {"Authorization": "Bearer admin"}
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - PATHS[path]:
        answer = server.ask(path, None if method == "GET" else b"{}", method, **head)
        assert (answer.status, set(answer.json)) == (405, {"error", "request_id"})
        assert set(answer.headers["allow"].split(", ")) - {"HEAD"} == PATHS[path]
    only_head = server.ask(path.replace("{version}", "none"), None, "HEAD", **head)
    assert only_head.status == (405 if PATHS[path] == {"POST"} else 404 if "{" in path else 200)
    assert only_head.body == b""


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/other", "/V1/suggest", "//v1/suggest", "/v1/%73uggest/x", "/a?b#c"])
def test_other_paths_are_not_found(path: str, server: Server) -> None:
    answer = server.ask(path, b"{}")
    assert (answer.status, set(answer.json)) == (404, {"error", "request_id"})


@pytest.mark.parametrize("count", [1, 10, 100, 1_000])
def test_any_number_of_messages_is_accepted(count: int, server: Server) -> None:
    answer = server.suggest(messages=[{"role": "customer", "text": f"message {n}"} for n in range(count)])
    assert (answer.status, answer.json["tokens"] <= 512) == (200, True)
    assert (answer.json["dropped_messages"] > 0) == (count > 100)


def test_a_message_of_a_megabyte_succeeds_or_times_out(server: Server) -> None:
    for text in ("my card is lost. " * 60_000, "\N{GRINNING FACE}" * 80_000, "\0" * 170_000):
        assert server.suggest(messages=[{"role": "customer", "text": text}]).status in (200, 504)


@pytest.mark.parametrize(
    ("field", "right", "wrong"),
    [
        ("k", [1, 100], [0, 101, -1, 2**64, 1.5, True, "5"]),
        ("threshold", [0, 1, -0.0, 5e-324, None], [-5e-324, 1.0000001, 1e308, False, "0"]),
        ("allowed", [None, [], ["unknown"], ["card"] * 10_000, ["", "\0", "\N{GRINNING FACE}"]], ["card", [None], {}]),
        ("case_id", ["c", "c" * 200, "\N{GRINNING FACE}" * 200], ["", "c" * 201, "\t", "\x7f", "c\n", None, 1]),
        ("messages", [MESSAGES * 5], [[], {}, None, "hi", [[]], [{}], [None]]),
    ],
)
def test_fields_are_valid_up_to_their_bounds(field: str, right: list[Any], wrong: list[Any], server: Server) -> None:
    for value in right:
        assert server.ask("/v1/suggest", {**REQUEST, field: value}).status == 200
    for value in wrong:
        answer = server.ask("/v1/suggest", {**REQUEST, field: value})
        assert (answer.status, answer.json["field"].partition("[")[0]) == (422, field)


def test_unknown_fields_must_be_utf_8_too(server: Server) -> None:
    assert server.ask("/v1/suggest", BODY[:-1] + b', "unknown": "\xc3("}').status == 422


def test_a_body_above_the_maximum_length_is_rejected(server: Server) -> None:
    longest = BODY + b" " * (MOST - len(BODY))
    assert server.ask("/v1/suggest", longest).status == 200
    for path in ("/v1/suggest", "/v1/events", "/v2/models/templates/infer"):
        answer = post(server, path, longest + b" ")
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert post(server, path, [longest, b" "]).status == 413
    assert statuses(send(server, POST + CLOSE + length(10**15) + b"\r\n")) == [
        413
    ]  # rejected before any of the body arrives


@pytest.mark.parametrize(
    ("path", "status", "encoding"),
    [
        ("/v1/suggest", 413, "identity"),
        ("/v1/suggest", 415, "gzip"),
        ("/admin/reload", 401, "identity"),
        ("/v1/suggest/", 404, "identity"),
        ("/v1/model", 405, "identity"),
    ],
)
def test_a_client_that_sends_all_of_a_long_body_first_can_read_the_answer(
    path: str, status: int, encoding: str, server: Server
) -> None:
    """A socket closed with unread bytes resets the connection, which this client, urllib, reports as an error."""
    answer = server.ask(path, b" " * 30 * MOST, Content_Encoding=encoding)
    assert (answer.status, set(answer.json)) == (status, {"error", "request_id"})


def test_a_compressed_body_is_rejected(server: Server) -> None:
    for encoding in ("gzip", "br", "deflate, gzip", "unknown", ""):
        assert server.ask("/v1/suggest", gzip.compress(BODY), Content_Encoding=encoding).status == 415
    for encoding in ("identity", "Identity", "IDENTITY, identity"):
        assert server.ask("/v1/suggest", BODY, Content_Encoding=encoding).status == 200
    twice = b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n"
    assert statuses(send(server, POST + CLOSE + twice + length(len(BODY)) + b"\r\n" + BODY)) == [415]


@pytest.mark.parametrize("half", [rb"\ud83d", rb"\ude00", rb"\ude00\ud83d", b"\xed\xa0\xbd"])
def test_half_of_a_character_is_rejected_by_field(half: bytes, server: Server) -> None:
    """JavaScript sends it when it cuts a text within an emoji."""
    for field, body in [
        ("messages[2].text", BODY.replace(b"stolen", b"stolen " + half)),
        ("case_id", BODY.replace(b'"c"', b'"%s"' % half)),
        ("unknown.list[1]", BODY[:-1] + b', "unknown": {"list": [1, "%s"]}}' % half),
        ("unknown", BODY[:-1] + b', "unknown": {"a name %s": 1}}' % half),
        (None, BODY[:-1] + b', "%s": 1}' % half),
    ]:
        answer = server.ask("/v1/suggest", body)
        assert (answer.status, answer.json.get("field")) == (422, field)
        assert answer.json["error"] == "has half of a surrogate pair; cut texts between characters"
    infer = {"inputs": [{"name": "case", "datatype": "BYTES", "shape": [1], "data": ["CASE"]}]}
    inner = BODY.replace(b"stolen", half).decode("utf-8", "surrogatepass")
    body = json.dumps(infer).replace("CASE", inner.replace('"', '\\"').replace("\\u", "\\\\u"))
    answer = server.ask("/v2/models/templates/infer", body.encode("utf-8", "surrogatepass"))
    place = "inputs[0].data[0]" if half[:1] == b"\xed" else "inputs[0].data[0].messages[2].text"
    assert (answer.status, answer.json["field"]) == (422, place)


def test_a_whole_surrogate_pair_is_a_character(server: Server) -> None:
    assert server.ask("/v1/suggest", BODY.replace(b"stolen", rb"\ud83d\ude00")).status == 200


def test_an_incomplete_body_times_out(server: Server) -> None:
    assert statuses(send(server, POST + length(len(BODY)) + b"\r\n" + BODY[:-1])) == [408]
    assert statuses(send(server, POST + CHUNKED + b"\r\n" + CHUNKS[:-5])) == [408]
    assert send(server, POST + length(len(BODY)) + b"\r\n" + BODY[:-1], finish=True) == b""


@pytest.mark.parametrize(
    "raw",
    [
        POST + CLOSE + CHUNKED + b"\r\n" + CHUNKS,
        POST + CLOSE + CHUNKED + b"\r\n" + CHUNKS.replace(b"9\r\n", b"9;extension=1\r\n", 1),
        POST + CLOSE + length(len(BODY)) + b"Expect: 100-continue\r\n\r\n" + BODY,
        POST + CLOSE + length(len(BODY)) + b"A: \xff\r\nContent-Type: \xff\r\n\r\n" + BODY,
        b"POST http://elsewhere/v1/suggest?a#b" + HEAD + CLOSE + length(len(BODY)) + b"\r\n" + BODY,
        b"POST /v1/suggest HTTP/1.0\r\n" + length(len(BODY)) + b"\r\n" + BODY,
        POST + length(len(BODY)) + b"\r\n" + BODY + POST + CLOSE + length(len(BODY)) + b"\r\n" + BODY,
        POST + CHUNKED + b"\r\n" + CHUNKS + b"GET /livez" + HEAD + b"\r\n" + b"GET /v1/model" + HEAD + CLOSE + b"\r\n",
        POST + OFFER + length(len(BODY)) + b"\r\n" + BODY + POST + CLOSE + length(len(BODY)) + b"\r\n" + BODY,
        (POST + OFFER + CHUNKED + b"\r\n" + CHUNKS) * 2 + b"GET /livez" + HEAD + CLOSE + b"\r\n",
        POST + OFFER + CLOSE + length(len(BODY)) + b"Expect: 100-continue\r\n\r\n" + BODY,
        b"POST /v1/suggest HTTP/1.0\r\n" + OFFER + length(len(BODY)) + b"\r\n" + BODY,
        (b"GET /livez" + HEAD + OFFER + b"\r\n") * 200 + b"GET /livez" + HEAD + CLOSE + b"\r\n",
        (b"GET /livez" + HEAD + b"\r\n") * 200 + b"GET /livez" + HEAD + CLOSE + b"\r\n",
    ],
)
def test_unusual_but_valid_requests_succeed(raw: bytes, server: Server) -> None:
    found = [status for status in statuses(send(server, raw)) if status != 100]
    assert found == [200] * raw.count(b" HTTP/1.")


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\nno HTTP\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff" + HEAD + b"\r\n",
        b"GET /%s" % (b"x" * 100_000) + HEAD + b"\r\n",
        b"GET /livez" + HEAD + b"A: \0\r\n\r\n",
        b"GET /livez" + HEAD + b"\xff: a\r\n\r\n",
        b"GET /livez" + HEAD + b"A: b\r\n c\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n" + BODY,
        POST + b"Content-Length: %s\r\n\r\n" % (b"9" * 5000),
        POST + length(len(BODY)) + length(3) + b"\r\n" + BODY,
        POST + length(len(BODY)) + CHUNKED + b"\r\n" + CHUNKS,
        POST + OFFER + length(len(BODY)) + length(3) + b"\r\n" + BODY,
        POST + OFFER + length(len(BODY)) + CHUNKED + b"\r\n" + CHUNKS,
        b"CONNECT here:80" + HEAD + OFFER + b"\r\n",
        POST + CHUNKED + b"\r\nZ\r\n",
        POST + CHUNKED + b"\r\nFFFFFFFFFFFFFFFFF\r\n",
    ],
)
def test_malformed_http_is_rejected(raw: bytes, server: Server) -> None:
    assert statuses(send(server, raw)) == [400]


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"\xff"])
def test_an_upgrade_is_ignored_without_blocking(protocol: bytes, server: Server) -> None:
    head = b"Connection: Upgrade, close\r\nUpgrade: %s\r\n" % protocol
    assert statuses(send(server, b"GET /v1/model" + HEAD + head + b"\r\n")) == [200]
    assert statuses(send(server, POST + head + length(len(BODY)) + b"\r\n" + BODY)) == [200]


def test_curl_may_offer_http_2(server: Server) -> None:
    curl = shutil.which("curl") or missing("curl")
    if "HTTP2" not in subprocess.run([curl, "--version"], capture_output=True, text=True, check=True).stdout.split():
        missing("curl with HTTP/2")
    call = [curl, "--silent", "--http2", "--fail-with-body", f"{server.url}/v1/suggest", "--data", BODY]
    answer = json.loads(subprocess.run(call, capture_output=True, check=True).stdout)
    assert answer["suggestions"] == server.suggest().json["suggestions"]


@pytest.mark.slow
def test_java_may_offer_http_2(server: Server, tmp_path: Path) -> None:
    if not shutil.which("javac"):
        missing("java")
    (tmp_path / "Client.java").write_text(JAVA)
    call = ["java", str(tmp_path / "Client.java"), f"{server.url}/v1/suggest", BODY]
    answers = subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [json.loads(answer)["suggestions"] for answer in answers] == [server.suggest().json["suggestions"]] * 2


def test_arbitrary_bytes_never_block_the_server(server: Server) -> None:
    offer = POST + OFFER + CHUNKED + b"\r\n"
    starts = st.sampled_from([b"", offer, b"GET /v1/model", b"GET /livez" + HEAD, POST, POST + CHUNKED + b"\r\n"])

    @settings(max_examples=60, derandomize=True, database=None)
    @given(starts, st.binary())
    def cut_off(start: bytes, rest: bytes) -> None:
        found = statuses(send(server, start + rest, finish=True))
        assert all(status < 500 for status in found)

    cut_off()
