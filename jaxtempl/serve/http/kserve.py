"""Version 2 of KServe's inference protocol, with Triton's binary extension: decode requests, encode answers. No JAX.

Each element of the only input, `case`, is the JSON of a `schema.ContextRequest`. The outputs `template` and
`probability` have one row for each element. Unknown parameters are ignored, as the protocol requires.

Protocol: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md. Binary form:
github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Annotated, NamedTuple, TypeVar

import msgspec
import numpy as np

import jaxtempl
from jaxtempl.serve import schema
from jaxtempl.serve.schema import FieldError

INPUT = "case"
OUTPUTS = {"template": "BYTES", "probability": "FP32"}
MAX_CASES = 64  # elements of a request
HEADER_LENGTH = "Inference-Header-Content-Length"  # HTTP header with the bytes of the JSON before binary data

ElementT = TypeVar("ElementT", str, float)


class Parameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """Supported parameters of requests and tensors.

    Attributes:
        binary_data_size: Bytes of a tensor's binary data after the JSON.
        binary_data: Whether a requested output is binary.
        binary_data_output: Default of `binary_data` for all outputs of a request.
        classification: Parameter of a requested output; not supported.
        shared_memory_region: Parameter of a requested output; not supported.
    """

    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    binary_data: bool | None = None
    binary_data_output: bool = False
    classification: int | None = None
    shared_memory_region: str | None = None


class Input(msgspec.Struct, frozen=True):
    """An input tensor; its data is flat, or rows of one element."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = Parameters()
    data: list[str | tuple[str]] | None = None


class RequestedOutput(msgspec.Struct, frozen=True):
    """A requested output."""

    name: str
    parameters: Parameters = Parameters()


class InferRequest(msgspec.Struct, frozen=True):
    """POST /v2/models/{name}[/versions/{version}]/infer: the JSON part of the body."""

    inputs: list[Input]
    id: str = ""
    outputs: list[RequestedOutput] = msgspec.field(default_factory=list[RequestedOutput])
    parameters: Parameters = Parameters()


class Tensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor of the metadata (-1 is any size) or of an answer, whose data is flat."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters | None = None
    data: Sequence[str | float] | None = None


class InferAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON part of an answer."""

    model_name: str
    model_version: str
    outputs: list[Tensor]
    id: str = ""


class ServerMetadata(msgspec.Struct, frozen=True):
    """GET /v2."""

    name: str
    version: str
    extensions: list[str]


class ModelMetadata(msgspec.Struct, frozen=True):
    """GET /v2/models/{name}[/versions/{version}]."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class InferCall(NamedTuple):
    """A checked request.

    Attributes:
        id: Id that the answer repeats, or empty.
        cases: Elements of the input.
        outputs: Requested outputs in order, and whether each is binary.
    """

    id: str
    cases: list[bytes]
    outputs: dict[str, bool]


def server_metadata() -> ServerMetadata:
    """Return the description of this server."""
    return ServerMetadata("jaxtempl", jaxtempl.__version__, ["binary_tensor_data"])


def model_metadata(name: str, version: str) -> ModelMetadata:
    """Return the description of the model's inputs and outputs."""
    inputs = [Tensor(INPUT, "BYTES", [-1])]
    outputs = [Tensor(output, datatype, [-1, -1]) for output, datatype in OUTPUTS.items()]
    return ModelMetadata(name, [version], "jaxtempl_bundle", inputs, outputs)


def parse_call(body: bytes, header_length: str | None) -> InferCall:
    """Decode and check a request.

    Args:
        body: JSON, followed by the input if it is binary.
        header_length: Value of the HTTP header HEADER_LENGTH; without it the whole body is JSON.

    Raises:
        FieldError: A field is missing or invalid.
    """
    end = len(body) if header_length is None else _header_end(header_length, len(body))
    request = schema.decode(InferRequest, body[:end])
    return InferCall(request.id, _cases(request.inputs, body[end:]), _requested(request))


def parse_contexts(call: InferCall) -> list[schema.ContextRequest]:
    """Decode each element of the input; raise FieldError with the index of an invalid one."""
    return [_parse_context(index, case) for index, case in enumerate(call.cases)]


def locate_error(index: int, error: FieldError) -> FieldError:
    """Return the error with the index of the input's element."""
    return FieldError(f"inputs[0].data[{index}].{error.field}".rstrip("."), error.detail)


def encode_answer(
    call: InferCall,
    model_name: str,
    version: str,
    templates: Sequence[Sequence[str]],
    probabilities: Sequence[Sequence[float]],
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the value of its header HEADER_LENGTH, or None if nothing is binary.

    Args:
        call: The request.
        model_name: Name of the model in the request.
        version: Version of the bundle.
        templates: Ids of the suggested templates of each case, best first; short rows are padded with "".
        probabilities: Their probabilities; padded with 0.
    """
    shape = [len(templates), max(map(len, templates), default=0)]
    names, numbers = _flatten(templates, ""), _flatten(probabilities, 0.0)
    binary = {"template": _join_elements(names), "probability": np.array(numbers, "<f4").tobytes()}
    binary = {name: binary[name] for name, is_binary in call.outputs.items() if is_binary}
    data = {"template": names, "probability": numbers}
    outputs = [
        Tensor(name, OUTPUTS[name], shape, Parameters(len(binary[name])))
        if name in binary
        else Tensor(name, OUTPUTS[name], shape, data=data[name])
        for name in call.outputs
    ]
    head = msgspec.json.encode(InferAnswer(model_name, version, outputs, call.id))
    return b"".join([head, *binary.values()]), len(head) if binary else None


def _header_end(header_length: str, size: int) -> int:
    if not re.fullmatch("[0-9]{1,15}", header_length) or int(header_length) > size:
        raise FieldError(HEADER_LENGTH, f"must be a whole number of bytes, at most the {size} of the body")
    return int(header_length)


def _cases(inputs: list[Input], tail: bytes) -> list[bytes]:
    """Return the elements of the input; `tail` is the part of the body after the JSON."""
    if len(inputs) != 1 or inputs[0].name != INPUT:
        raise FieldError("inputs", f"must be exactly one, with the name {INPUT}")
    tensor = inputs[0]
    if tensor.datatype != "BYTES":
        raise FieldError("inputs[0].datatype", "must be BYTES")
    if tensor.shape[1:] not in ([], [1]) or not tensor.shape or not 1 <= tensor.shape[0] <= MAX_CASES:
        raise FieldError("inputs[0].shape", f"must be [N] or [N, 1], N from 1 to {MAX_CASES}")
    if (tensor.parameters.binary_data_size or 0) != len(tail):
        raise FieldError("inputs[0].parameters.binary_data_size", f"must be the {len(tail)} bytes after the JSON")
    if (tensor.data is None) == (tensor.parameters.binary_data_size is None):
        raise FieldError("inputs[0]", "must have either data or parameters.binary_data_size")
    if tensor.data is None:
        return _split_elements(tail, tensor.shape[0])
    if len(tensor.data) != tensor.shape[0]:
        raise FieldError("inputs[0].data", "must have as many elements as the shape")
    return [(row if isinstance(row, str) else row[0]).encode() for row in tensor.data]


def _split_elements(tail: bytes, count: int) -> list[bytes]:
    """Split binary data into elements, each preceded by its length in four bytes."""
    end, elements = 0, list[bytes]()
    for _ in range(count):
        start = end + 4
        end = start + int.from_bytes(tail[end:start], "little")
        elements.append(tail[start:end])
    if end != len(tail):  # also if one length exceeds the data, as `end` never decreases
        raise FieldError("inputs[0]", "must have as many elements as the shape, each preceded by its length in 4 bytes")
    return elements


def _join_elements(texts: list[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def _requested(request: InferRequest) -> dict[str, bool]:
    """Return the requested outputs, by default all, and whether each is binary."""
    default = request.parameters.binary_data_output
    outputs: dict[str, bool] = {}
    for index, output in enumerate(request.outputs):
        _check_output(f"outputs[{index}]", output)
        binary = output.parameters.binary_data
        outputs[output.name] = default if binary is None else binary
    return outputs or dict.fromkeys(OUTPUTS, default)


def _check_output(field: str, output: RequestedOutput) -> None:
    if output.name not in OUTPUTS:
        raise FieldError(f"{field}.name", f"must be one of {', '.join(OUTPUTS)}")
    for name in ("classification", "shared_memory_region"):
        if getattr(output.parameters, name) is not None:
            raise FieldError(f"{field}.parameters.{name}", "is not supported; leave it out")


def _parse_context(index: int, case: bytes) -> schema.ContextRequest:
    try:
        return schema.decode(schema.ContextRequest, case)
    except FieldError as error:
        raise locate_error(index, error) from None


def _flatten(rows: Sequence[Sequence[ElementT]], fill: ElementT) -> list[ElementT]:
    """Concatenate all rows, each padded to the longest."""
    return list(itertools.chain.from_iterable(zip(*itertools.zip_longest(*rows, fillvalue=fill), strict=True)))
