"""The KServe protocol, checked with tritonclient's encoders and decoders, and with its client over a real socket."""

import json
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import tritonclient.http as triton
from asgi_server import serve_app
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jaxtempl.serve import schema
from jaxtempl.serve.http import kserve
from jaxtempl.serve.schema import FieldError

CANARY = "canary4711"
ROWS = st.lists(st.text(), min_size=1, max_size=kserve.MAX_CASES)
WANTED = st.sampled_from(
    [["template"], ["probability"], ["template", "probability"], ["probability", "template"]]
).flatmap(
    lambda names: st.tuples(*(st.booleans() for _ in names)).map(lambda binary: dict(zip(names, binary, strict=True)))
)


def case_input(texts: Sequence[str | bytes], binary: bool, tail: Sequence[int] = ()) -> triton.InferInput:
    """Encode the model's input with tritonclient; `tail` holds the dimensions after the first."""
    shape = [len(texts), *tail]
    made = triton.InferInput("case", shape, "BYTES")
    made.set_data_from_numpy(np.array(texts, np.object_).reshape(shape), binary_data=binary)
    return made


def body_of(texts: Sequence[str | bytes], binary: bool, tail: Sequence[int] = (), **more: Any) -> tuple[bytes, Any]:
    """Return a request's body and the length of its JSON part, formatted as in the HTTP header."""
    body, size = triton.InferenceServerClient.generate_request_body([case_input(texts, binary, tail)], **more)
    return body, None if size is None else str(size)


def wanted(outputs: dict[str, bool]) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary) for name, binary in outputs.items()]


# Requests


@given(ROWS, st.booleans(), st.sampled_from([[], [1]]), st.just({}) | WANTED, st.text(st.characters(codec="ascii")))
def test_any_texts_are_parsed_from_tritonclients_encoding(
    texts: list[str], binary: bool, tail: list[int], outputs: dict[str, bool], name: str
) -> None:
    found = kserve.parse_call(*body_of(texts, binary, tail, request_id=name, outputs=wanted(outputs)))
    assert found.cases == [text.encode() for text in texts]
    assert found.id == name
    assert list(found.outputs.items()) == list((outputs or dict.fromkeys(kserve.OUTPUTS, True)).items())


def request(**changes: Any) -> bytes:
    """Encode a request of two cases as JSON; `changes` apply to the input, `changes["request"]` to the request."""
    of_request = changes.pop("request", {})
    given = {"name": "case", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]} | changes
    return json.dumps({"inputs": [{k: v for k, v in given.items() if v is not None}], **of_request}).encode()


def test_nested_data_is_accepted_and_unknown_parameters_are_ignored() -> None:
    made = request(shape=[2, 1], data=[["a"], ["b"]], parameters={"x": 1}, request={"parameters": {"priority": 2}})
    assert kserve.parse_call(made, None) == ("", [b"a", b"b"], {"template": False, "probability": False})


def test_an_outputs_binary_data_overrides_binary_data_output() -> None:
    outputs = [{"name": "probability"}, {"name": "template", "parameters": {"binary_data": False}}]
    made = request(request={"parameters": {"binary_data_output": True}, "outputs": outputs})
    assert list(kserve.parse_call(made, None).outputs.items()) == [("probability", True), ("template", False)]


def test_a_binary_element_is_decoded_only_when_contexts_are_parsed() -> None:
    found = kserve.parse_call(*body_of([b'{"messages": [{"role": "customer", "text": "\xff"}]}'], True))
    with pytest.raises(FieldError) as raised:
        kserve.parse_contexts(found)
    assert raised.value.field == "inputs[0].data[0]"


# Rejected requests


BINARY = {"data": None, "shape": [1], "parameters": {"binary_data_size": 5}}


@pytest.mark.parametrize(
    ("changes", "tail", "field"),
    [
        ({"name": CANARY}, b"", "inputs"),
        ({"request": {"inputs": []}}, b"", "inputs"),
        ({"datatype": "INT32"}, b"", "inputs[0].datatype"),
        ({"datatype": None}, b"", "inputs[0].datatype"),
        ({"shape": [3]}, b"", "inputs[0].data"),
        ({"shape": [1, 2]}, b"", "inputs[0].shape"),
        ({"shape": [0], "data": []}, b"", "inputs[0].shape"),
        ({"shape": []}, b"", "inputs[0].shape"),
        ({"shape": [-2]}, b"", "inputs[0].shape"),
        ({"shape": [65], "data": ["a"] * 65}, b"", "inputs[0].shape"),
        ({"shape": [2**70]}, b"", "inputs[0].shape"),
        ({"data": [CANARY, 1]}, b"", "inputs[0].data[1]"),
        ({"data": [["a", CANARY]], "shape": [2]}, b"", "inputs[0].data[0]"),
        ({"data": ["a\ud800", "b"]}, b"", "inputs[0].data[0]"),
        ({"data": None}, b"", "inputs[0]"),
        ({"parameters": {"shared_memory_region": CANARY}, "data": None}, b"", "inputs[0]"),
        ({"parameters": {"binary_data_size": 0}}, b"", "inputs[0]"),
        (BINARY, b"\1\0\0\0", "inputs[0].parameters.binary_data_size"),
        (BINARY, b"\1\0\0\0ab", "inputs[0].parameters.binary_data_size"),
        (BINARY, b"\0\0\0\0a", "inputs[0]"),
        (BINARY, b"\2\0\0\0a", "inputs[0]"),
        (BINARY, b"\xff\xff\xff\xffa", "inputs[0]"),
        (BINARY | {"shape": [2]}, b"\1\0\0\0a", "inputs[0]"),
        (BINARY | {"parameters": {"binary_data_size": -5}}, b"", "inputs[0].parameters.binary_data_size"),
        ({}, b"a", "inputs[0].parameters.binary_data_size"),
        ({"request": {"outputs": [{"name": "template"}, {"name": CANARY}]}}, b"", "outputs[1].name"),
        ({"request": {"id": 1}}, b"", "id"),
        *(
            (
                {"request": {"outputs": [{"name": "template", "parameters": {name: value}}]}},
                b"",
                f"outputs[0].parameters.{name}",
            )
            for name, value in {"classification": 3, "shared_memory_region": CANARY}.items()
        ),
    ],
)
def test_an_error_names_the_field_and_does_not_repeat_its_value(
    changes: dict[str, Any], tail: bytes, field: str
) -> None:
    head = request(**changes)
    with pytest.raises(FieldError) as raised:
        kserve.parse_call(head + tail, str(len(head)))
    assert raised.value.field == field
    assert CANARY not in raised.value.detail
    assert len(raised.value.detail.splitlines()) == 1


@pytest.mark.parametrize("length", ["", "-1", "x", "1e3", " 5", "٣", "9" * 5000, "99999", "5"])
def test_a_wrong_header_length_is_rejected(length: str) -> None:
    with pytest.raises(FieldError):
        kserve.parse_call(request(), length)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"inputs":[{"data":', b'{"inputs":[{"data":[', b'{"x":['])
def test_deep_nesting_is_rejected(opening: bytes) -> None:
    for body in (opening * 50_000, opening + b"[" * 50_000 + b"]" * 50_000):
        with pytest.raises(FieldError):
            kserve.parse_call(body, None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(CANARY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = ("name", "shape", "datatype", "data", "parameters")
LENGTHS = st.none() | st.text(max_size=5) | st.integers(0, 400).map(str)


def only_field_errors(body: bytes, length: str | None) -> None:
    try:
        told = ""
        kserve.parse_contexts(kserve.parse_call(body, length))
    except FieldError as error:
        told = f"{error.field} {error.detail}"
    assert CANARY not in told


@given(st.binary(max_size=200), LENGTHS)
def test_random_bytes_raise_only_field_errors(body: bytes, length: str | None) -> None:
    only_field_errors(body, length)


@given(st.dictionaries(st.sampled_from(KEYS), JSON), st.dictionaries(st.sampled_from(["id", "outputs"]), JSON), LENGTHS)
def test_random_values_raise_only_field_errors(
    changes: dict[str, Any], of_request: dict[str, Any], length: str | None
) -> None:
    only_field_errors(request(**changes, request=of_request), length)


@given(ROWS, st.integers(0, 400), st.integers(0, 255), LENGTHS)
def test_a_damaged_body_raises_only_field_errors(texts: list[str], place: int, byte: int, length: str) -> None:
    body, size = body_of([*texts[1:], CANARY], True)
    place %= len(body)
    only_field_errors(body[:place], size)
    only_field_errors(body[:place] + bytes([byte]) + body[place + 1 :], size)
    only_field_errors(body, length)


@pytest.mark.parametrize(
    ("case", "field"),
    [
        (b'{"messages": [{"role": "customer", "text": "a"}, {"role": "nobody", "text": "a"}]}', ".messages[1].role"),
        (b'{"messages": []}', ".messages"),
        (b"{}", ".messages"),
        (b"[1]", ""),
        (b"", ""),
    ],
)
def test_an_invalid_case_is_named_by_its_index(case: bytes, field: str) -> None:
    good = b'{"messages": [{"role": "customer", "text": "a"}], "k": 3}'
    infer = kserve.parse_call(*body_of([good, case], True))
    with pytest.raises(FieldError) as raised:
        kserve.parse_contexts(infer)
    assert raised.value.field == f"inputs[0].data[1]{field}"
    assert kserve.parse_contexts(infer._replace(cases=[good])) == [
        schema.ContextRequest(messages=[schema.RequestMessage("customer", "a")], k=3)
    ]


# Responses


PAIRS = st.lists(st.lists(st.tuples(st.text(), st.floats(0, 1, width=32)), max_size=4), min_size=1, max_size=6)


@given(PAIRS, WANTED, st.text())
def test_responses_are_decoded_by_tritonclient(
    rows: list[list[tuple[str, float]]], outputs: dict[str, bool], name: str
) -> None:
    infer = kserve.InferCall(name, [b""] * len(rows), outputs)
    templates, numbers = ([[pair[i] for pair in row] for row in rows] for i in (0, 1))
    body, size = kserve.encode_answer(infer, "templates", "v1", cast("Any", templates), cast("Any", numbers))
    assert (size is not None) == any(outputs.values())
    found: Any = triton.InferenceServerClient.parse_response_body(body, header_length=size)
    told = found.get_response()
    assert (told["model_name"], told["model_version"], told.get("id", "")) == ("templates", "v1", name)
    assert [output["name"] for output in told["outputs"]] == list(outputs)
    width = max(map(len, rows))
    for output, column, fill in zip(kserve.OUTPUTS, (templates, numbers), ("", 0.0), strict=True):
        if output in outputs:
            array = found.as_numpy(output)
            assert array.shape == (len(rows), width)
            values = [value.decode() if isinstance(value, bytes) else value for value in array.ravel().tolist()]
            assert values == [value for row in column for value in [*row, *[fill] * (width - len(row))]]
            assert ("data" in found.get_output(output)) != outputs[output], (
                "exactly the outputs requested as binary are binary"
            )


# Over HTTP


async def infer(request: Request) -> Response:
    """Suggest the texts of each case's messages in order; a third of a text's length is its probability."""
    length = request.headers.get(kserve.HEADER_LENGTH)
    try:
        asked = kserve.parse_call(await request.body(), length)
        templates = [[said.text for said in context.messages[: context.k]] for context in kserve.parse_contexts(asked)]
    except FieldError as error:
        return Response(json.dumps({"error": f"{error.field}: {error.detail}"}), 422)
    numbers = [[len(text) / 3 for text in row] for row in templates]
    body, size = kserve.encode_answer(asked, request.path_params["name"], "v1", templates, numbers)
    return Response(body, headers={} if size is None else {kserve.HEADER_LENGTH: str(size)})


def json_of(make: Callable[[Request], Any]) -> Callable[[Request], Response]:
    return lambda request: Response(msgspec.json.encode(make(request)))


APP = Starlette(
    routes=[
        Route("/v2", json_of(lambda _: kserve.server_metadata())),
        Route("/v2/health/live", json_of(lambda _: True)),
        Route("/v2/models/{name}", json_of(lambda request: kserve.model_metadata(request.path_params["name"], "v1"))),
        Route("/v2/models/{name}/versions/v1/ready", json_of(lambda _: True)),
        Route("/v2/models/{name}/infer", infer, methods=["POST"]),
    ]
)


@pytest.fixture(scope="module")
def client() -> Generator[triton.InferenceServerClient]:
    with serve_app(APP) as port, triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def test_tritonclient_finds_the_model(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_model_ready("templates", "v1")
    assert not client.is_model_ready("templates", "v2")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    found = client.get_model_metadata("templates")
    assert found == {
        "name": "templates",
        "versions": ["v1"],
        "platform": "jaxtempl_bundle",
        "inputs": [{"name": "case", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "template", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "probability", "datatype": "FP32", "shape": [-1, -1]},
        ],
    }


def case(*texts: str) -> str:
    return json.dumps({"messages": [{"role": "customer", "text": text} for text in texts], "k": 2}, ensure_ascii=False)


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("probability", [True, False])
def test_tritonclient_infers_in_every_encoding(
    client: triton.InferenceServerClient, sent: bool, template: bool, probability: bool
) -> None:
    outputs = wanted({"template": template, "probability": probability})
    asked = case_input([case("Grüße 🙂", "b", "c"), case("no")], sent, [1])
    found: Any = client.infer("templates", [asked], outputs=outputs, request_id="7")
    texts = [text.decode() if isinstance(text, bytes) else text for text in found.as_numpy("template").ravel().tolist()]
    assert texts == ["Grüße 🙂", "b", "no", ""]
    np.testing.assert_array_equal(found.as_numpy("probability"), np.array([[7 / 3, 1 / 3], [2 / 3, 0]], np.float32))
    assert found.get_response()["id"] == "7"


def test_tritonclient_receives_the_error(client: triton.InferenceServerClient) -> None:
    with pytest.raises(triton.InferenceServerException, match=r"inputs\[0\]\.data\[0\]"):
        client.infer("templates", [case_input([CANARY], True)])
    top = triton.InferRequestedOutput("template", class_count=3)
    with pytest.raises(triton.InferenceServerException, match="classification: is not supported"):
        client.infer("templates", [case_input([case("a")], True)], outputs=[top])
