"""Run a bundle's network: token ids in, logits out. No JAX.

Dims: B rows, L length, S slots (or vocabulary).
"""

import zlib
from pathlib import Path
from time import sleep
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import onnxruntime
from jaxtyping import Float32, Int32

from jaxtempl.bundle.bundle import ONNX, Bundle
from jaxtempl.errors import UserError, first_line
from jaxtempl.serve.inference import tensorrt
from jaxtempl.serve.inference.tensorrt import Machine

PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    # Without TensorFloat-32, because float32 parts of the graph were verified in float32.
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
}


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

    def __init__(
        self, model: Path, threads: int = 0, spin: bool = True, device: Literal["cpu", "cuda"] = "cpu"
    ) -> None:
        """Load the model.

        Args:
            model: A file that passed `onnx_check.check_onnx`.
            threads: Number of threads; 0 uses all cores.
            spin: Whether idle threads spin, which takes cores from other networks in use.
            device: Device of the session. `cuda` needs onnxruntime-gpu instead of onnxruntime; this project has not
                run it.

        Raises:
            UserError: ONNX Runtime cannot run the model, or has no such device.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        options.log_severity_level = 4  # errors are raised, and its warnings are not for users
        if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise UserError(
                "this ONNX Runtime has no CUDA; pip install onnxruntime-gpu instead of onnxruntime, or leave out "
                "--backend=cuda"
            )
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=PROVIDERS[device])
        except Exception as error:  # its exceptions share no base class
            raise UserError(f"ONNX Runtime cannot run {model}: {first_line(error)}") from None
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
    return OnnxRuntime(onnx_path(bundle)) if bundle.model.name == ONNX else tensorrt.load_engine(bundle, Machine.here())


def onnx_path(bundle: Bundle) -> Path:
    """Return the path of the bundle's graph; raise UserError if it has an engine instead."""
    if bundle.model.name != ONNX:
        raise UserError(f"{bundle.folder} has an engine instead of a graph; serve it with --backend=tensorrt")
    return bundle.model
