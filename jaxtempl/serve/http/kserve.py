"""Version 2 of KServe's inference protocol, as Triton speaks it: requests in, answers out, as JSON or binary.

The one input `case` has in each element the JSON of an `api.Context`; the outputs `template` and `probability` have a
row for each. The protocol: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md. Its
binary form: github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md. Parameters that mean
nothing here are ignored, as the protocol has it. No JAX.
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
MAX_CASES = 64  # of a request
HEADER_LENGTH = "Inference-Header-Content-Length"  # the HTTP header that says where the JSON ends and the binary begins

ElementT = TypeVar("ElementT", str, float)


class Parameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """Those that mean something here, wherever they stand.

    Attributes:
        binary_data_size: of a tensor that is not in the JSON: its bytes after it.
        binary_data: of an output that is wanted: whether as binary.
        binary_data_output: of a request: whether outputs that do not say so themselves are wanted as binary.
        classification: of an output that is wanted; refused.
        shared_memory_region: likewise.
    """

    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    binary_data: bool | None = None
    binary_data_output: bool = False
    classification: int | None = None
    shared_memory_region: str | None = None


class Input(msgspec.Struct, frozen=True):
    """A tensor of a request; its data is flat, or a row of one element each."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = Parameters()
    data: list[str | tuple[str]] | None = None


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output that is wanted."""

    name: str
    parameters: Parameters = Parameters()


class InferRequest(msgspec.Struct, frozen=True):
    """POST /v2/models/{name}[/versions/{version}]/infer: the JSON at the body's start."""

    inputs: list[Input]
    id: str = ""
    outputs: list[RequestedOutput] = msgspec.field(default_factory=list[RequestedOutput])
    parameters: Parameters = Parameters()


class Tensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor as metadata has it (-1 is any size), or as an answer, whose data is flat."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters | None = None
    data: Sequence[str | float] | None = None


class InferAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON at the start of an answer."""

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
    """A request that is as it must be.

    Attributes:
        id: to be given back; empty without one.
        cases: an element of the input each.
        outputs: those wanted, in their order, and whether as binary.
    """

    id: str
    cases: list[bytes]
    outputs: dict[str, bool]


def server_metadata() -> ServerMetadata:
    """What this server is."""
    return ServerMetadata("jaxtempl", jaxtempl.__version__, ["binary_tensor_data"])


def model_metadata(name: str, version: str) -> ModelMetadata:
    """What the model takes and gives."""
    inputs = [Tensor(INPUT, "BYTES", [-1])]
    outputs = [Tensor(output, datatype, [-1, -1]) for output, datatype in OUTPUTS.items()]
    return ModelMetadata(name, [version], "jaxtempl_bundle", inputs, outputs)


def parse_call(body: bytes, header_length: str | None) -> InferCall:
    """A request out of a body that is not compressed.

    Args:
        body: JSON, and after it the binary input, if it is binary.
        header_length: bytes of the JSON, as the HTTP header HEADER_LENGTH has it; all of the body without one.

    Raises:
        FieldError: it is not as it must be.
    """
    end = len(body) if header_length is None else _header_end(header_length, len(body))
    request = schema.decode(InferRequest, body[:end])
    return InferCall(request.id, _cases(request.inputs, body[end:]), _wanted(request))


def parse_contexts(infer: InferCall) -> list[schema.ContextRequest]:
    """What is asked in each case; raises FieldError, with the case's place, where one is not as it must be."""
    return [_context(index, case) for index, case in enumerate(infer.cases)]


def locate_error(index: int, error: FieldError) -> FieldError:
    """What is wrong in a case, told with the case's place."""
    return FieldError(f"inputs[0].data[{index}].{error.field}".rstrip("."), error.detail)


def encode_answer(
    infer: InferCall,
    model_name: str,
    version: str,
    templates: Sequence[Sequence[str]],
    probabilities: Sequence[Sequence[float]],
) -> tuple[bytes, int | None]:
    """The body of an answer, and the value of its header HEADER_LENGTH, which it has only where a part is binary.

    Args:
        infer: the request.
        model_name: that was asked for.
        version: of the bundle.
        templates: ids of the templates suggested for each case, best first; short rows are filled with "".
        probabilities: theirs; filled with 0.
    """
    shape = [len(templates), max(map(len, templates), default=0)]
    names, numbers = _filled(templates, ""), _filled(probabilities, 0.0)
    binary = {"template": _framed(names), "probability": np.array(numbers, "<f4").tobytes()}
    binary = {name: binary[name] for name, wanted in infer.outputs.items() if wanted}
    data = {"template": names, "probability": numbers}
    outputs = [
        Tensor(name, OUTPUTS[name], shape, Parameters(len(binary[name])))
        if name in binary
        else Tensor(name, OUTPUTS[name], shape, data=data[name])
        for name in infer.outputs
    ]
    head = msgspec.json.encode(InferAnswer(model_name, version, outputs, infer.id))
    return b"".join([head, *binary.values()]), len(head) if binary else None


def _header_end(header_length: str, most: int) -> int:
    if not re.fullmatch("[0-9]{1,15}", header_length) or int(header_length) > most:
        raise FieldError(HEADER_LENGTH, f"must be a whole number of bytes, at most the {most} of the body")
    return int(header_length)


def _cases(inputs: list[Input], tail: bytes) -> list[bytes]:
    """Elements of the input; `tail` is what came after the JSON."""
    if len(inputs) != 1 or inputs[0].name != INPUT:
        raise FieldError("inputs", f"must be one, of the name {INPUT}")
    given = inputs[0]
    if given.datatype != "BYTES":
        raise FieldError("inputs[0].datatype", "must be BYTES")
    if given.shape[1:] not in ([], [1]) or not given.shape or not 1 <= given.shape[0] <= MAX_CASES:
        raise FieldError("inputs[0].shape", f"must be [N] or [N, 1], N from 1 to {MAX_CASES}")
    if (given.parameters.binary_data_size or 0) != len(tail):
        raise FieldError("inputs[0].parameters.binary_data_size", f"must be the {len(tail)} bytes after the JSON")
    if (given.data is None) == (given.parameters.binary_data_size is None):
        raise FieldError("inputs[0]", "must have either data or parameters.binary_data_size")
    if given.data is None:
        return _unframed(tail, given.shape[0])
    if len(given.data) != given.shape[0]:
        raise FieldError("inputs[0].data", "must have as many elements as the shape says")
    return [(row if isinstance(row, str) else row[0]).encode() for row in given.data]


def _unframed(tail: bytes, count: int) -> list[bytes]:
    """That many elements, each after its length in four bytes."""
    place, found = 0, list[bytes]()
    for _ in range(count):
        start = place + 4
        place = start + int.from_bytes(tail[place:start], "little")
        found.append(tail[start:place])
    if place != len(tail):  # a length that leads beyond the end is never made up for by those after it
        raise FieldError("inputs[0]", "must have as many elements as the shape says, each after its length in 4 bytes")
    return found


def _framed(texts: list[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def _wanted(request: InferRequest) -> dict[str, bool]:
    """Every output that is wanted, all where none is named, and whether as binary."""
    default = request.parameters.binary_data_output
    found: dict[str, bool] = {}
    for index, output in enumerate(request.outputs):
        _check(f"outputs[{index}]", output)
        binary = output.parameters.binary_data
        found[output.name] = default if binary is None else binary
    return found or dict.fromkeys(OUTPUTS, default)


def _check(field: str, output: RequestedOutput) -> None:
    if output.name not in OUTPUTS:
        raise FieldError(f"{field}.name", f"must be one of {', '.join(OUTPUTS)}")
    for name in ("classification", "shared_memory_region"):
        if getattr(output.parameters, name) is not None:
            raise FieldError(f"{field}.parameters.{name}", "is not supported; leave it out")


def _context(index: int, case: bytes) -> schema.ContextRequest:
    try:
        return schema.decode(schema.ContextRequest, case)
    except FieldError as error:
        raise locate_error(index, error) from None


def _filled(rows: Sequence[Sequence[ElementT]], fill: ElementT) -> list[ElementT]:
    """All rows one after another, each as long as the longest."""
    return list(itertools.chain.from_iterable(zip(*itertools.zip_longest(*rows, fillvalue=fill), strict=True)))
