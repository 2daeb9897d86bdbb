"""What runs a bundle's network: token ids in, logits out. No JAX.

Dims: B rows, L length, S slots (or vocabulary).
"""

from pathlib import Path

import numpy as np
import onnxruntime
from jaxtyping import Float32, Int32

from jaxtempl.errors import UserError, first_line


class OnnxRuntime:
    """model.onnx in ONNX Runtime, on the CPU."""

    def __init__(self, model: Path, threads: int = 0, spin: bool = True) -> None:
        """Loads the model.

        Args:
            model: a file that `onnx_file.check` has passed.
            threads: 0 takes all cores.
            spin: idle threads wait busily for their next work, which takes cores from other networks in use.

        Raises:
            UserError: ONNX Runtime cannot run it.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        options.log_severity_level = 4  # errors are raised; what it warns of is not for a user
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
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
