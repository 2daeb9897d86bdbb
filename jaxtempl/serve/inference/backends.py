"""What runs a bundle's network: token ids in, logits out. No JAX.

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
    # Without TensorFloat-32: what is float32 in the graph was verified as float32.
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
}


@runtime_checkable
class Network(Protocol):
    """A network, loaded; asked by one thread at a time."""

    def __call__(
        self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]
    ) -> Float32[np.ndarray, "B *L S"]:
        """Logits of rows padded on the right; raises UserError where it fails."""
        ...

    def close(self) -> None:
        """Gives back what it holds; it cannot be asked after it."""
        ...


class OnnxRuntime:
    """model.onnx in ONNX Runtime."""

    def __init__(
        self, model: Path, threads: int = 0, spin: bool = True, device: Literal["cpu", "cuda"] = "cpu"
    ) -> None:
        """Loads the model.

        Args:
            model: a file that `onnx_file.check` has passed.
            threads: 0 takes all cores.
            spin: idle threads wait busily for their next work, which takes cores from other networks in use.
            device: `cuda` needs onnxruntime-gpu in onnxruntime's place; it has not been run by this project.

        Raises:
            UserError: ONNX Runtime cannot run it, or has no such device.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        options.log_severity_level = 4  # errors are raised; what it warns of is not for a user
        if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise UserError(
                "this ONNX Runtime knows no CUDA; pip install onnxruntime-gpu in place of onnxruntime, or drop "
                "--backend=cuda"
            )
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=PROVIDERS[device])
        except Exception as error:  # its exceptions share no base of their own
            raise UserError(f"ONNX Runtime cannot run {model}: {first_line(error)}") from None
        self._model = model
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __call__(
        self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]
    ) -> Float32[np.ndarray, "B *L S"]:
        """Logits of rows padded on the right; a language model has them at each place [B L S]."""
        return self.run(["logits"], ids, lengths)[0]

    def run(
        self, names: list[str], ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]
    ) -> list[np.ndarray]:
        """The outputs of these names; raises UserError where the model cannot take such input."""
        feeds = {"input_ids": ids, "lengths": lengths[:, None]}
        try:
            found = self._session.run(names, {name: feeds[name] for name in self._inputs})
        except Exception as error:
            raise UserError(f"ONNX Runtime failed in {self._model}: {first_line(error)}") from None
        return [np.asarray(output) for output in found]

    def close(self) -> None:
        """The session goes with its last user."""


class FakeNetwork:
    """No network: logits that are made up from the ids alone, after a given time; what serves is measured with it."""

    def __init__(self, slots: int, milliseconds: float = 0.0) -> None:
        """Args: slots of the head, and milliseconds that a row takes."""
        self._slots, self._seconds = slots, milliseconds / 1000

    def __call__(self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]) -> Float32[np.ndarray, "B S"]:
        """The slot that a checksum of a row's ids names is its best, the next ones follow."""
        if self._seconds:
            sleep(self._seconds * len(ids))
        sums = [zlib.crc32(row[:length].tobytes()) for row, length in zip(ids, lengths, strict=True)]
        places = (np.arange(self._slots) - np.array(sums)[:, None]) % self._slots
        return -places.astype(np.float32)

    def close(self) -> None:
        """It holds nothing."""


def load_network(bundle: Bundle) -> Network:
    """The bundle's TensorRT engine on this machine's GPU, or its graph in ONNX Runtime on the CPU.

    Raises:
        UserError: the engine is not for this machine, or ONNX Runtime cannot run the graph.
    """
    return OnnxRuntime(onnx_path(bundle)) if bundle.model.name == ONNX else tensorrt.load_engine(bundle, Machine.here())


def onnx_path(bundle: Bundle) -> Path:
    """The bundle's graph; raises UserError where it has an engine in its place."""
    if bundle.model.name != ONNX:
        raise UserError(f"{bundle.folder} has an engine and no graph; serve it with --backend=tensorrt")
    return bundle.model
