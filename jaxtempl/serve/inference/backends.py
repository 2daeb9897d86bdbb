"""Run a bundle's network: token ids in, logits out. No JAX.

Dims: B rows, L length, S slots (or vocabulary).
"""

import logging
import zlib
from pathlib import Path
from time import sleep
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

from jaxtempl.bundle.bundle import ONNX, Bundle
from jaxtempl.errors import UserError, first_line
from jaxtempl.serve import logs
from jaxtempl.serve.inference import onnx_session, processor, tensorrt
from jaxtempl.serve.inference.onnx_session import Device
from jaxtempl.serve.inference.tensorrt import Machine


@runtime_checkable
class Network(Protocol):
    """A loaded network, called by one thread at a time."""

    def __call__(
        self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]
    ) -> Float32[np.ndarray, "B *L S"]:
        """Return the logits of rows padded on the right; raise UserError on failure."""
        ...

    def close(self) -> None:
        """Release the network's resources; it cannot be called afterwards."""
        ...


class OnnxRuntime:
    """A model.onnx in ONNX Runtime."""

    def __init__(self, model: Path, threads: int = 0, spin: bool = True, device: Device = "cpu") -> None:
        """Load the model; see `onnx_session.open_session`."""
        self._session = onnx_session.open_session(model, threads, spin, device)
        self._model = model
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __call__(
        self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]
    ) -> Float32[np.ndarray, "B *L S"]:
        """Return the logits of rows padded on the right; a language model has them at each position [B L S]."""
        return self.run(["logits"], ids, lengths)[0]

    def run(
        self, names: list[str], ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]
    ) -> list[np.ndarray]:
        """Return the outputs of these names; raise UserError if the model cannot run on the input."""
        feeds = {"input_ids": ids, "lengths": lengths[:, None]}
        try:
            outputs = self._session.run(names, {name: feeds[name] for name in self._inputs})
        except Exception as error:
            raise UserError(f"ONNX Runtime failed in {self._model}: {first_line(error)}") from None
        return [np.asarray(output) for output in outputs]

    def close(self) -> None:
        """Do nothing; the session is freed with its last reference."""


class FakeNetwork:
    """A stand-in for a network: logits derived from the ids alone, after a given time; for tests of the server."""

    def __init__(self, slots: int, milliseconds: float = 0.0) -> None:
        """Set the slots of the head and the milliseconds that a row takes."""
        self._slots, self._seconds = slots, milliseconds / 1000

    def __call__(self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]) -> Float32[np.ndarray, "B S"]:
        """Return logits that rank the slot of the ids' checksum first, then the slots after it."""
        if self._seconds:
            sleep(self._seconds * len(ids))
        sums = [zlib.crc32(row[:length].tobytes()) for row, length in zip(ids, lengths, strict=True)]
        ranks = (np.arange(self._slots) - np.array(sums)[:, None]) % self._slots
        return -ranks.astype(np.float32)

    def close(self) -> None:
        """Do nothing."""


def load_network(bundle: Bundle) -> Network:
    """Load the bundle's TensorRT engine on this machine's GPU, or its graph in ONNX Runtime on the CPU.

    Raises:
        UserError: The engine was built for another machine, or ONNX Runtime cannot run the graph.
    """
    return open_graph(bundle) if bundle.model.name == ONNX else tensorrt.load_engine(bundle, Machine.here())


def open_graph(bundle: Bundle, threads: int = 0, spin: bool = True, device: Device = "cpu") -> OnnxRuntime:
    """Open the bundle's graph in ONNX Runtime, and log a warning if its gate ran on another kind of processor.

    Raises:
        UserError: The bundle has an engine instead, or ONNX Runtime cannot run the graph.
    """
    if bundle.model.name != ONNX:
        raise UserError(f"{bundle.folder} has an engine instead of a graph; serve it with --backend=tensorrt")
    manifest = bundle.manifest
    onnx_session.check_version(manifest["dtype"], manifest.get("form", "fused"))
    gated_on = manifest.get("quantize", {}).get("machine", {}).get("instruction_set")
    here = processor.instruction_set()
    if gated_on not in (None, here):
        logs.log_event(
            f"{bundle.folder} passed its accuracy gate on a processor with {gated_on}, and this one has {here}; "
            "bin/convert onnx --quantize=int8 on this machine measures its accuracy here",
            logging.WARNING,
        )
    return OnnxRuntime(bundle.model, threads, spin, device)
