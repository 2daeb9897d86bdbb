"""Every route answers valid and invalid requests as GET /openapi.json documents; none fails or hangs."""

import asyncio
import json
import re
import urllib.parse
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bundles import write_serving_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schema_values import ODD, Values, faults, spoilt
from serving import MESSAGES, Answer, Server, served
from starlette.routing import Route

from jaxtempl.config.serving import ServeConfig
from jaxtempl.serve.http import openapi
from jaxtempl.serve.http.app import App

DOCUMENT = openapi.document(guarded=False)
UNLISTED = re.compile("/openapi.json|/console(/(.+[.](css|js))?)?")  # the document itself and the page's files
BEYOND = re.compile(r"(inputs|outputs)(\[.*)?|messages|at|")  # fields that the server checks beyond the schema
ADMIN = "token-of-admin"
REQUEST: dict[str, Any] = {"case_id": "c", "messages": MESSAGES}
GIVEN = settings(
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Operation(NamedTuple):
    """An operation of the OpenAPI document."""

    method: str
    path: str
    description: dict[str, Any]

    @property
    def body(self) -> dict[str, Any] | None:
        return (
            self.description["requestBody"]["content"]["application/json"]["schema"]
            if "requestBody" in self.description
            else None
        )

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


OPERATIONS = [
    Operation(method.upper(), path, told) for path, each in DOCUMENT["paths"].items() for method, told in each.items()
]
READING = [operation for operation in OPERATIONS if operation.body]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """Yield a server for all tests; it must still answer at the end and have logged no error."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "admin").write_text(ADMIN)
    flags = f"--admin_tokens={folder / 'admin'}", "--timeout_ms=8000"
    with served(write_serving_bundle(folder / "bundle"), folder / "events.sqlite", *flags) as found:
        yield found
        assert found.suggest().status == 200
        assert not [line for line in found.log if '"level":"error"' in line or "Traceback" in line]


@pytest.fixture(scope="module")
def known(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return values that exist on the server, by property name."""
    return {
        "suggestion_id": server.suggest().json["suggestion_id"],
        "version": server.ask("/v1/model").json["version"],
        "bundle": str(write_serving_bundle(tmp_path_factory.mktemp("known") / "bundle")),
        "inputs": [{"name": "case", "datatype": "BYTES", "shape": [1], "data": [json.dumps(REQUEST)]}],
        "outputs": [{"name": "probability"}],
        "parameters": {"binary_data_output": True},
    }


def ask(
    server: Server, operation: Operation, body: bytes | None, version: str, query: str = "", **headers: Any
) -> Answer:
    path = operation.path.replace("{version}", urllib.parse.quote(version, safe=""))
    if operation.path.startswith("/admin/"):
        headers["Authorization"] = f"Bearer {ADMIN}"
    return server.ask(path + query, body, operation.method, **headers)


def check(operation: Operation, answer: Answer) -> None:
    """Check that an answer matches the document and repeats nothing of the request."""
    assert answer.status < 500 or answer.status in (503, 504), answer
    listed = operation.description["responses"].get(str(answer.status))
    assert listed, f"{operation} answered {answer}"
    kind = answer.headers["content-type"].partition(";")[0]
    form = listed["content"][kind]
    if kind == "application/json":
        assert not faults(form["schema"], DOCUMENT, answer.json), answer
    if answer.status >= 400:
        assert answer.json["request_id"] == answer.headers["x-request-id"]
        assert answer.json["error"]
        assert "\n" not in answer.json["error"]
        repeated = ODD in f"{answer.headers}{answer.json}"
        assert not repeated or operation.path == "/admin/reload"  # its error names the folder


def routes(store: Path) -> Iterator[Route]:
    """Return the routes of the application."""

    async def found() -> Sequence[Any]:
        app = App(ServeConfig(store=f"sqlite:///{store}"), lambda error: None)
        async with app.lifespan(None):  # its exit closes the store
            return app.routes()

    return (route for route in asyncio.run(found()) if isinstance(route, Route))


def test_the_served_document_equals_the_generated_one(server: Server) -> None:
    assert server.ask("/openapi.json").json == DOCUMENT


def test_the_document_lists_every_route_and_no_other(tmp_path: Path) -> None:
    found = {(method, r.path) for r in routes(tmp_path / "events") for method in r.methods or () if method != "HEAD"}
    assert {(o.method, o.path) for o in OPERATIONS} == {(m, path) for m, path in found if not UNLISTED.fullmatch(path)}


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_every_answer_matches_the_document(operation: Operation, server: Server, known: dict[str, Any]) -> None:
    values = Values(DOCUMENT, known)
    bodies = values.of(operation.body or {"type": "null"})
    versions = st.sampled_from([known["version"]] * 3) | st.text()

    @settings(GIVEN, max_examples=40 if operation.body else 8)
    @given(bodies | spoilt(bodies), versions, st.text())
    def answered(body: Any, version: str, query: str) -> None:
        raw = json.dumps(body).encode() if operation.body else None
        answer = ask(server, operation, raw, version, f"?{urllib.parse.quote(query)}")
        check(operation, answer)
        if operation.body and answer.status not in (404, 503, 504):
            agreed(operation.body, body, answer)

    answered()


def agreed(schema: dict[str, Any], body: Any, answer: Answer) -> None:
    """Check that the answer reports a fault that jsonschema also finds, or none if it finds none."""
    wrong = faults(schema, DOCUMENT, body)
    if wrong:
        assert answer.status == 422
        assert answer.json.get("field", "") in wrong
    elif answer.status == 422:
        assert BEYOND.fullmatch(answer.json.get("field", ""))


BODIES = {
    "empty": b"",
    "blank": b" \n",
    "no object": b"[]",
    "half": b'{"case_id": "c", "messages": [',
    "two": b"{}{}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": json.dumps(REQUEST).encode("utf-16"),
    "invalid utf-8": b'{"case_id": "\xff\xfe", "unknown": "\xc3("}',
    "lone surrogate": rb'{"case_id": "\udc00", "unknown": "\ud800"}',
    "surrogate in utf-8": b'{"case_id": "\xed\xa0\x80"}',
    "NUL": b'{"case_id": "c\0"}',
    "NUL escaped": rb'{"case_id": "c\u0000", "unknown\u0000": 1}',
    "control character": b'{"case_id": "c\n"}',
    "NaN": b'{"threshold": NaN, "position": NaN}',
    "infinity": b'{"threshold": 1e999, "position": -Infinity}',
    "integer of 5,000 digits": b'{"k": %s, "position": %s}' % (b"9" * 5000, b"9" * 5000),
    "number of 5,000 digits": b'{"threshold": 0.%s1, "unknown": 1e%s}' % (b"0" * 5000, b"9" * 5000),
    "deep lists": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"messages":' * 50_000 + b"1" + b"}" * 50_000,
    "deep in an unknown key": b'{"unknown": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "keys twice": b'{"case_id": "c", "case_id": 1, "inputs": [], "inputs": 1, "at": 1, "at": 2}',
    "many keys": json.dumps({f"unknown {i}": i for i in range(40_000)}).encode(),
    "name too long for a file": b'{"bundle": "%s"}' % (b"x" * 300),
    "comment": b"/* */ {}",
    "another language": b"<xml/>",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_malformed_body_is_rejected(name: str, server: Server, known: dict[str, Any]) -> None:
    for operation in READING:
        answer = ask(server, operation, BODIES[name], known["version"])
        check(operation, answer)
        assert answer.status == 422 or operation.path == "/admin/reload", answer  # all its fields are optional


@pytest.mark.parametrize("operation", READING, ids=str)
def test_arbitrary_bytes_get_a_documented_answer(operation: Operation, server: Server, known: dict[str, Any]) -> None:
    @settings(GIVEN, max_examples=30)
    @given(st.binary(), st.text() | st.integers(0, 9).map(str))
    def answered(raw: bytes, length: str) -> None:
        head = {"Inference_Header_Content_Length": urllib.parse.quote(length)}
        check(operation, ask(server, operation, raw, known["version"], **head))

    answered()
