"""Run a bundle's network on a Triton server over HTTP. No JAX.

Triton's own client uses gevent sockets, which belong to the thread that opened them. This client may be called from
any thread, one at a time. It sends tensors in the binary form described in `kserve`, over one kept-alive connection.

Dims: B rows, L tokens, S slots.
"""

import http.client
import re
from typing import Annotated, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np
from jaxtyping import Float32, Int32

from jaxtempl.bundle.bundle import Bundle
from jaxtempl.errors import UserError, first_line
from jaxtempl.serve.http.kserve import HEADER_LENGTH, InferAnswer, ModelMetadata, Tensor
from jaxtempl.serve.schema import ErrorAnswer


class TritonModelConfig(msgspec.Struct, frozen=True):
    """The part of a model's configuration that is read: the maximum rows of a request."""

    max_batch_size: Annotated[int, msgspec.Meta(ge=1)]


MetadataT = TypeVar("MetadataT", ModelMetadata, TritonModelConfig)


class Triton:
    """A model of a Triton server; it is accepted as the bundle's if its inputs and outputs match."""

    def __init__(self, address: str, model: str, bundle: Bundle, timeout: float) -> None:
        """Connect, and compare the model with the bundle.

        Args:
            address: HOST:PORT of the server's HTTP service.
            model: Name of the model on the server.
            bundle: Bundle that `bin/convert triton` made the model from.
            timeout: Socket timeout, in seconds.

        Raises:
            UserError: The server is unreachable, or the model is not ready, or does not match the bundle.
        """
        self._name = f"Triton at {address}"
        self._path = f"/v2/models/{quote(model, safe='')}"
        self._slots = int(bundle.manifest["slots"])
        self._connection = http.client.HTTPConnection(_check_address(address), timeout=timeout)
        try:
            self._check_model(bundle, self._fetch("", ModelMetadata))
            self._batch = self._fetch("/config", TritonModelConfig).max_batch_size
        except UserError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __call__(self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]) -> Float32[np.ndarray, "B S"]:
        """Return the logits of rows padded on the right, in requests of at most the model's maximum batch.

        Raises:
            UserError: There is no answer, or it has another shape; the message contains nothing of the rows.
        """
        microbatches = [slice(start, start + self._batch) for start in range(0, len(ids), self._batch)]
        return np.concatenate([self._infer(ids[rows], lengths[rows, None]) for rows in microbatches])

    def _infer(self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, "B 1"]) -> Float32[np.ndarray, "B S"]:
        head, body = _request(input_ids=ids, lengths=lengths)
        status, size, answer = self._send("POST", "/infer", head + body, {HEADER_LENGTH: str(len(head))})
        if status != 200:  # its message may contain parts of the request
            raise UserError(f"{self._name} answered {status} to {len(ids)} rows; see its log")
        logits = _logits(answer, size, [len(ids), self._slots])
        if logits is None:
            raise UserError(
                f"{self._name} answered without logits of shape {[len(ids), self._slots]}; was the model replaced?"
            )
        return logits

    def _fetch(self, path: str, kind: type[MetadataT]) -> MetadataT:
        """Fetch a description of the model."""
        status, _, body = self._send("GET", path)
        if status != 200:
            raise UserError(f"{self._name} has no ready {self._path}: it answered {status}{_error_text(body)}")
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise UserError(
                f"{self._name} sent an unexpected answer for {self._path}{path}; serve a model of "
                "bin/convert triton there"
            ) from None

    def _check_model(self, bundle: Bundle, model: ModelMetadata) -> None:
        """Raise UserError unless the model's inputs and outputs match the bundle's."""
        inputs = [Tensor("input_ids", "INT32", [-1, -1]), Tensor("lengths", "INT32", [-1, 1])]
        expected = _describe(inputs, [Tensor("logits", "FP32", [-1, self._slots])])
        actual = _describe(model.inputs, model.outputs)
        if actual != expected:
            raise UserError(
                f"the model {model.name} of {self._name} has {actual}, and {bundle.folder} has {expected}; serve the "
                "result of bin/convert triton for that bundle, or pass its model as --triton_model"
            )

    def _send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str | None, bytes]:
        """Return status, HEADER_LENGTH and body of an answer; reopen a connection that was closed while idle."""
        was_open = self._connection.sock is not None
        try:
            self._connection.request(method, self._path + path, body, headers or {})
            response = self._connection.getresponse()
            return response.status, response.headers.get(HEADER_LENGTH), response.read()
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # UnicodeError: the host name is invalid
            self.close()
            if was_open and isinstance(error, ConnectionError):
                return self._send(method, path, body, headers)
            problem = f"{self._name} cannot be reached: {first_line(error)}"
            raise UserError(f"{problem}; check --triton=HOST:PORT and the server's load") from None


def _check_address(address: str) -> str:
    match = re.fullmatch(r"(?:[\w.-]+|\[[\da-fA-F:.]+\]):(\d{1,5})", address, re.ASCII)
    if not match or int(match[1]) > 65535:
        raise UserError(f"{address!r} is not HOST:PORT; pass an address like --triton=localhost:8000")
    return address


def _request(**arrays: Int32[np.ndarray, "B _"]) -> tuple[bytes, bytes]:
    """Return the JSON and the binary part of a request for the logits."""
    inputs = [
        {"name": name, "datatype": "INT32", "shape": array.shape, "parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    head = msgspec.json.encode({"inputs": inputs, "outputs": outputs})
    return head, b"".join(array.astype("<i4").tobytes() for array in arrays.values())


def _logits(body: bytes, size: str | None, shape: list[int]) -> Float32[np.ndarray, "B S"] | None:
    """Return the logits of an answer whose JSON has `size` bytes; None unless it has exactly one output of `shape`."""
    try:
        end = int(size or "")
        (output,) = msgspec.json.decode(body[:end], type=InferAnswer).outputs
        if (output.name, output.datatype, output.shape) != ("logits", "FP32", shape):
            return None
        return np.frombuffer(body[end:], "<f4").reshape(shape)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _error_text(body: bytes) -> str:
    """Return Triton's error message as one line."""
    try:
        return ": " + " ".join(msgspec.json.decode(body, type=ErrorAnswer).error.split())
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""


def _describe(inputs: list[Tensor], outputs: list[Tensor]) -> str:
    """Format names, types and shapes, sorted by name."""
    lists = (sorted(f"{t.name} {t.datatype} {t.shape}" for t in tensors) for tensors in (inputs, outputs))
    return " -> ".join(", ".join(each) for each in lists)
