"""The Triton backend, against a stand-in that parses requests independently and computes a known function."""

import contextlib
import json
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from asgi_server import serve_app
from imports import without
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jaxtempl.bundle.bundle import Bundle
from jaxtempl.errors import UserError
from jaxtempl.serve.inference.triton import Triton

SLOTS = 6
MOST = 4
BUNDLE = Bundle(Path("bundle"), {"slots": SLOTS}, [])
METADATA: dict[str, Any] = {
    "name": "templates",
    "versions": ["1"],
    "platform": "onnxruntime_onnx",
    "inputs": [
        {"name": "input_ids", "datatype": "INT32", "shape": [-1, -1]},
        {"name": "lengths", "datatype": "INT32", "shape": [-1, 1]},
    ],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, SLOTS]}],
}
Answer = Callable[[bytes, int], Response]


def expected(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the stand-in's logits: the sum of a row's real ids and its length, times the slot's number."""
    sums = [row[:length].sum() + length for row, length in zip(ids, lengths, strict=True)]
    return np.outer(np.array(sums), np.arange(1, SLOTS + 1)).astype(np.float32)


def read(body: bytes, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids and lengths of a request."""
    ids, lengths = json.loads(body[:end])["inputs"]
    size = ids["parameters"]["binary_data_size"]
    pieces = [(ids, body[end : end + size]), (lengths, body[end + size :])]
    assert [len(raw) for _, raw in pieces] == [each["parameters"]["binary_data_size"] for each, _ in pieces]
    found = [np.frombuffer(raw, "<i4").reshape(each["shape"]) for each, raw in pieces]
    return found[0], found[1][:, 0]


def answered(array: np.ndarray, **changes: Any) -> Response:
    """Return a response that encodes an array as Triton does, with changes to the output's metadata."""
    raw = array.astype("<f4").tobytes()
    output = {"name": "logits", "datatype": "FP32", "shape": array.shape, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"model_name": "templates", "model_version": "1", "outputs": [output | changes]}).encode()
    return Response(head + raw, headers={"Inference-Header-Content-Length": str(len(head))})


def well(body: bytes, end: int) -> Response:
    return answered(expected(*read(body, end)))


class StandIn:
    """A stand-in for a Triton server.

    Attributes:
        answer: Function that responds to an inference request; None sends nothing until the client disconnects.
        asked: Body of each inference request, and the length of its JSON in bytes.
        callers: Client ports of the requests, one for each connection.
    """

    def __init__(self, metadata: Any = METADATA, config: Any = None) -> None:
        self.answer: Answer | None = well
        self.asked: list[tuple[bytes, int]] = []
        self.callers: set[int] = set()
        self._facts = {
            "/v2/models/templates": metadata,
            "/v2/models/templates/config": config or {"max_batch_size": MOST},
        }
        routes = [Route(path, self._fact) for path in self._facts]
        infer = Route("/v2/models/templates/infer", self._infer, methods=["POST"])
        self.app = Starlette(routes=[*routes, infer, Route("/{path:path}", unknown)])

    async def _fact(self, request: Request) -> Response:
        return JSONResponse(self._facts[request.url.path])

    async def _infer(self, request: Request) -> Response:
        assert request.client
        self.callers.add(request.client.port)
        self.asked.append((await request.body(), int(request.headers["inference-header-content-length"])))
        if self.answer:
            return self.answer(*self.asked[-1])
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response()


async def unknown(request: Request) -> Response:
    return JSONResponse({"error": "Request for unknown model:\n is not found"}, 400)


@contextlib.contextmanager
def connected(stand_in: StandIn, model: str = "templates", timeout: float = 20.0, port: int = 0) -> Generator[Triton]:
    with serve_app(stand_in.app, port) as taken:
        network = Triton(f"127.0.0.1:{taken}", model, BUNDLE, timeout)
        with contextlib.closing(network):
            yield network


@pytest.fixture(scope="module")
def pair() -> Generator[tuple[StandIn, Triton]]:
    """A stand-in and a backend connected to it."""
    stand_in = StandIn()
    with connected(stand_in) as network:
        yield stand_in, network


def rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return random padded ids and their lengths."""
    generator = np.random.default_rng(seed)
    ids, lengths = generator.integers(0, 1000, (count, 16)), generator.integers(1, 17, count)
    return ids.astype(np.int32), lengths.astype(np.int32)


# Responses


def test_logits_equal_the_servers_over_one_connection() -> None:
    stand_in = StandIn()
    with connected(stand_in) as network:
        for seed, count in enumerate([1, 4, 3]):
            ids, lengths = rows(count, seed)
            found = network(ids, lengths)
            assert (found.dtype, found.shape) == (np.float32, (count, SLOTS))
            np.testing.assert_array_equal(found, expected(ids, lengths))
    assert len(stand_in.callers) == 1


def test_rows_above_the_models_maximum_batch_are_split_into_requests() -> None:
    stand_in = StandIn(config={"max_batch_size": 2})
    ids, lengths = rows(5)
    with connected(stand_in) as network:
        np.testing.assert_array_equal(network(ids, lengths), expected(ids, lengths))
    assert [len(read(*asked)[0]) for asked in stand_in.asked] == [2, 2, 1]


def test_the_request_equals_tritonclients() -> None:
    stand_in = StandIn()
    ids, lengths = rows(3)
    with connected(stand_in) as network:
        network(ids[:, ::2], lengths // 2)
    inputs = []
    for name, array in (("input_ids", ids[:, ::2]), ("lengths", (lengths // 2)[:, None])):
        inputs.append(triton.InferInput(name, list(array.shape), "INT32").set_data_from_numpy(array))
    outputs = [triton.InferRequestedOutput("logits")]
    wanted, size = triton.InferenceServerClient.generate_request_body(inputs, outputs=outputs)
    assert size is not None
    ((body, end),) = stand_in.asked
    assert body[end:] == wanted[size:]
    assert json.loads(body[:end]) == json.loads(wanted[:size])


def test_any_thread_can_send_requests() -> None:
    ids, lengths = rows(2)
    found: list[np.ndarray] = []
    with connected(StandIn()) as network:
        for _ in range(3):
            thread = threading.Thread(target=lambda: found.append(network(ids, lengths)))
            thread.start()
            thread.join()
    assert len(found) == 3


# Failures


def test_the_backend_reconnects_to_a_restarted_server() -> None:
    stand_in, (ids, lengths) = StandIn(), rows(1)
    with serve_app(stand_in.app) as port:
        network = Triton(f"127.0.0.1:{port}", "templates", BUNDLE, 20.0)
        network(ids, lengths)
    with serve_app(stand_in.app, port):  # the restart closed the kept-alive connection
        np.testing.assert_array_equal(network(ids, lengths), expected(ids, lengths))
    for _ in range(2):
        with pytest.raises(UserError, match=r"cannot be reached: .*refused"):
            network(ids, lengths)
    with serve_app(stand_in.app, port), contextlib.closing(network):
        np.testing.assert_array_equal(network(ids, lengths), expected(ids, lengths))


def test_a_request_to_a_hung_server_times_out_and_the_next_one_succeeds() -> None:
    stand_in, (ids, lengths) = StandIn(), rows(1)
    with connected(stand_in, timeout=1.5) as network:
        stand_in.answer = None
        with pytest.raises(UserError, match="timed out"):
            network(ids, lengths)
        assert len(stand_in.asked) == 1, "a request that timed out is not retried"
        stand_in.answer = well
        np.testing.assert_array_equal(network(ids, lengths), expected(ids, lengths))


@pytest.mark.parametrize("status", [400, 500, 503])
def test_a_server_error_is_one_line_without_the_request(pair: tuple[StandIn, Triton], status: int) -> None:
    (stand_in, network), (ids, lengths) = pair, rows(2)
    stand_in.answer = lambda body, end: JSONResponse({"error": f"bad {read(body, end)[0].tolist()}"}, status)
    with pytest.raises(UserError, match=f"answered {status} to 2 rows") as raised:
        network(ids, lengths)
    assert "bad" not in str(raised.value)
    stand_in.answer = well
    np.testing.assert_array_equal(network(ids, lengths), expected(ids, lengths))


LOGITS = np.ones((2, SLOTS), np.float32)
WRONG: dict[str, Answer] = {
    "another shape": lambda body, end: answered(np.ones((2, SLOTS + 1))),
    "fewer rows": lambda body, end: answered(LOGITS[:1]),
    "rows that are not there": lambda body, end: answered(LOGITS[:1], shape=[2, SLOTS]),
    "more than the shape": lambda body, end: answered(np.ones((3, SLOTS)), shape=[2, SLOTS]),
    "another type": lambda body, end: answered(LOGITS, datatype="INT32"),
    "another output": lambda body, end: answered(LOGITS, name="labels"),
    "a shape of text": lambda body, end: answered(LOGITS, shape=["2", "6"]),
    "no binary": lambda body, end: JSONResponse({"outputs": []}),
    "no JSON": lambda body, end: Response(b"\xff\0", headers={"Inference-Header-Content-Length": "2"}),
    "deep JSON": lambda body, end: Response(
        b'{"outputs":' + b"[" * 99_999, headers={"Inference-Header-Content-Length": "99999"}
    ),
    "a length of nothing": lambda body, end: Response(b"{}", headers={"Inference-Header-Content-Length": "x"}),
    "nothing": lambda body, end: Response(),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_malformed_responses_are_rejected(pair: tuple[StandIn, Triton], wrong: str) -> None:
    stand_in, network = pair
    stand_in.answer = WRONG[wrong]
    with pytest.raises(UserError, match=r"without logits of shape \[2, 6\]"):
        network(*rows(2))


# Connecting


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 7]}]}, "logits FP32 [-1, 7]"),
        ({"outputs": [{"name": "logits", "datatype": "FP16", "shape": [-1, SLOTS]}]}, "logits FP16"),
        ({"inputs": METADATA["inputs"][:1]}, "has input_ids INT32 [-1, -1] -> "),
        ({"inputs": [{"name": "case", "datatype": "BYTES", "shape": [-1]}]}, "has case BYTES [-1] -> "),
    ],
)
def test_a_model_with_other_inputs_or_outputs_is_rejected(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="bin/convert triton") as raised, connected(StandIn(METADATA | changes)):
        pass
    assert said in str(raised.value)
    assert "bundle has input_ids INT32 [-1, -1], lengths INT32 [-1, 1] -> logits FP32 [-1, 6]" in str(raised.value)


def test_the_servers_inputs_may_be_in_any_order() -> None:
    with connected(StandIn(METADATA | {"inputs": METADATA["inputs"][::-1]})) as network:
        network(*rows(1))


@pytest.mark.parametrize("odd", ["hello", {"name": "templates"}, {**METADATA, "inputs": 1}])
def test_a_server_other_than_triton_is_rejected(odd: Any) -> None:
    with pytest.raises(UserError, match="serve a model of bin/convert triton"), connected(StandIn(odd)):
        pass


@pytest.mark.parametrize("config", [{"max_batch_size": 0}, {"max_batch_size": "4"}, [1]])
def test_a_model_without_batching_is_rejected(config: Any) -> None:
    with pytest.raises(UserError, match=r"unexpected answer for .*/config"), connected(StandIn(config=config)):
        pass


def test_the_error_for_an_unknown_model_quotes_triton() -> None:
    with pytest.raises(UserError) as raised, connected(StandIn(), "a/b c"):
        pass
    assert "has no ready /v2/models/a%2Fb%20c: it answered 400: Request for unknown model: is not" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "address",
    ["http://localhost:8000", "localhost:http", "local host:8000", "localhost", ":8000", "localhost:65536", "::1:8000"],
)
def test_an_address_other_than_host_and_port_is_an_error(address: str) -> None:
    with pytest.raises(UserError, match=r"is not HOST:PORT; pass an address like --triton=localhost:8000"):
        Triton(address, "templates", BUNDLE, 1.0)


def test_an_address_may_be_ipv6() -> None:
    with pytest.raises(UserError, match=r"Triton at \[::1\]:1 cannot be reached"):
        Triton("[::1]:1", "templates", BUNDLE, 1.0)


def test_an_invalid_host_name_is_an_error() -> None:
    with pytest.raises(UserError, match=r"Triton at a\.\.b:8000 cannot be reached"):
        Triton("a..b:8000", "templates", BUNDLE, 1.0)


def test_the_backend_does_not_need_tritonclient() -> None:
    done = without({"tritonclient", "gevent", "jax", "flax"}, ["jaxtempl.serve.inference.triton"])
    assert done.returncode == 0, done.stderr
