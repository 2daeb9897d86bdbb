"""A Triton server that runs a bundle's network: token ids out over HTTP, logits back. No JAX.

Not by its own client, whose sockets (gevent's) belong to the thread that opened them: here a call may come from any
thread, one at a time. Tensors go in the binary form that `kserve` tells of, over one connection that is kept.

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
    """What is read of a model's configuration: most rows of one request."""

    max_batch_size: Annotated[int, msgspec.Meta(ge=1)]


MetadataT = TypeVar("MetadataT", ModelMetadata, TritonModelConfig)


class Triton:
    """A model of a Triton server, which is taken to be of the bundle if it has its inputs and outputs."""

    def __init__(self, address: str, model: str, bundle: Bundle, timeout: float) -> None:
        """Connects, and holds the model to the bundle.

        Args:
            address: HOST:PORT of its HTTP service.
            model: its name there.
            bundle: that `bin/convert triton` made the model of.
            timeout: longest silence of the server, in seconds.

        Raises:
            UserError: the server cannot be reached, or has no such model ready, or it is of another kind.
        """
        self._name = f"Triton at {address}"
        self._path = f"/v2/models/{quote(model, safe='')}"
        self._slots = int(bundle.manifest["slots"])
        self._connection = http.client.HTTPConnection(_checked(address), timeout=timeout)
        try:
            self._hold_to(bundle, self._facts("", ModelMetadata))
            self._batch = self._facts("/config", TritonModelConfig).max_batch_size
        except UserError:
            self.close()
            raise

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def __call__(self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]) -> Float32[np.ndarray, "B S"]:
        """Logits of rows padded on the right, as many of them in a request as the model takes.

        Raises:
            UserError: there is no answer, or it is not of this shape; nothing of the rows is in its line.
        """
        pieces = [slice(start, start + self._batch) for start in range(0, len(ids), self._batch)]
        return np.concatenate([self._infer(ids[piece], lengths[piece, None]) for piece in pieces])

    def _infer(self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, "B 1"]) -> Float32[np.ndarray, "B S"]:
        head, body = _request(input_ids=ids, lengths=lengths)
        status, size, answer = self._send("POST", "/infer", head + body, {HEADER_LENGTH: str(len(head))})
        if status != 200:  # what it says of a request may have a word of it
            raise UserError(f"{self._name} answered {status} to {len(ids)} rows; its log says why")
        logits = _logits(answer, size, [len(ids), self._slots])
        if logits is None:
            raise UserError(
                f"{self._name} answered without logits of {[len(ids), self._slots]}; was the model replaced?"
            )
        return logits

    def _facts(self, path: str, kind: type[MetadataT]) -> MetadataT:
        """What the server says of the model."""
        status, _, body = self._send("GET", path)
        if status != 200:
            raise UserError(f"{self._name} has no {self._path} that is ready: it answered {status}{_said(body)}")
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise UserError(
                f"{self._name} answered {self._path}{path} otherwise than for a model of bin/convert triton; is it one?"
            ) from None

    def _hold_to(self, bundle: Bundle, found: ModelMetadata) -> None:
        """Raises UserError unless the model takes and gives what the bundle's does."""
        inputs = [Tensor("input_ids", "INT32", [-1, -1]), Tensor("lengths", "INT32", [-1, 1])]
        wanted = _told(inputs, [Tensor("logits", "FP32", [-1, self._slots])])
        told = _told(found.inputs, found.outputs)
        if told != wanted:
            raise UserError(
                f"the model {found.name} of {self._name} takes {told}, and {bundle.folder} is {wanted}; serve there "
                "what bin/convert triton makes of that bundle, or name its model with --triton_model"
            )

    def _send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str | None, bytes]:
        """Status, HEADER_LENGTH and body of an answer; a connection that was closed while idle is opened anew."""
        kept = self._connection.sock is not None
        try:
            self._connection.request(method, self._path + path, body, headers or {})
            response = self._connection.getresponse()
            return response.status, response.headers.get(HEADER_LENGTH), response.read()
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last for a host that cannot be one
            self.close()
            if kept and isinstance(error, ConnectionError):
                return self._send(method, path, body, headers)
            said = f"{self._name} cannot be reached: {first_line(error)}"
            raise UserError(f"{said}; does it run there (--triton=HOST:PORT), and is it overloaded?") from None


def _checked(address: str) -> str:
    found = re.fullmatch(r"(?:[\w.-]+|\[[\da-fA-F:.]+\]):(\d{1,5})", address, re.ASCII)
    if not found or int(found[1]) > 65535:
        raise UserError(f"{address!r} is no HOST:PORT, like localhost:8000; pass --triton=HOST:PORT")
    return address


def _request(**arrays: Int32[np.ndarray, "B _"]) -> tuple[bytes, bytes]:
    """JSON and binary part of a request for the logits."""
    inputs = [
        {"name": name, "datatype": "INT32", "shape": array.shape, "parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    head = msgspec.json.encode({"inputs": inputs, "outputs": outputs})
    return head, b"".join(array.astype("<i4").tobytes() for array in arrays.values())


def _logits(body: bytes, size: str | None, shape: list[int]) -> Float32[np.ndarray, "B S"] | None:
    """The logits in an answer, whose JSON has `size` bytes; None unless they, and nothing else, are of that shape."""
    try:
        end = int(size or "")
        (output,) = msgspec.json.decode(body[:end], type=InferAnswer).outputs
        if (output.name, output.datatype, output.shape) != ("logits", "FP32", shape):
            return None
        return np.frombuffer(body[end:], "<f4").reshape(shape)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _said(body: bytes) -> str:
    """Triton's own words for an error, as one line."""
    try:
        return ": " + " ".join(msgspec.json.decode(body, type=ErrorAnswer).error.split())
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""


def _told(inputs: list[Tensor], outputs: list[Tensor]) -> str:
    """Names, types and shapes, by name."""
    lists = (sorted(f"{t.name} {t.datatype} {t.shape}" for t in tensors) for tensors in (inputs, outputs))
    return " -> ".join(", ".join(each) for each in lists)
