"""Open sessions of ONNX Runtime: the one place that sets their options."""

from pathlib import Path
from typing import Literal

import onnxruntime

from jaxtempl.errors import UserError, first_line
from jaxtempl.serve.inference import processor

Device = Literal["cpu", "cuda"]
PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    # Without TensorFloat-32, because float32 parts of the graph were verified in float32.
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
}
# Earlier versions take over a second for 256 tokens of causal attention in float16, and 1.25 takes 29 ms (issue 16).
FUSED_FP16 = (1, 25)


def open_session(
    model: Path | bytes, threads: int = 0, spin: bool = True, device: Device = "cpu"
) -> onnxruntime.InferenceSession:
    """Open a session.

    Args:
        model: A file that passed `onnx_check.check_onnx`, or the bytes of a model.
        threads: Number of threads; 0 uses all cores.
        spin: Whether idle threads spin, which takes cores from other networks in use.
        device: Device of the session. `cuda` needs onnxruntime-gpu instead of onnxruntime; this project has not run it.

    Raises:
        UserError: ONNX Runtime cannot run the model, or has no such device.
    """
    if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UserError(
            "this ONNX Runtime has no CUDA; pip install onnxruntime-gpu instead of onnxruntime, or leave out "
            "--backend=cuda"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised, and its warnings are not for users
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    # Products of int8 must not saturate. With VNNI they never do, and this option would double their time (issue 16).
    options.add_session_config_entry("session.x64quantprecision", str(int(not processor.has_vnni())))
    try:
        return onnxruntime.InferenceSession(model, options, providers=PROVIDERS[device])
    except Exception as error:  # its exceptions share no base class
        shown = model if isinstance(model, Path) else "the model"
        raise UserError(f"ONNX Runtime cannot run {shown}: {first_line(error)}") from None


def check_version(dtype: str, form: str) -> None:
    """Raise UserError if the installed ONNX Runtime is too old for a graph's type and its form of attention."""
    installed = onnxruntime.__version__
    too_old = tuple(int(part) for part in installed.split(".")[:2]) < FUSED_FP16
    if too_old and form == "fused" and dtype not in ("fp32", "int8"):
        needed = ".".join(map(str, FUSED_FP16))
        raise UserError(
            f"ONNX Runtime {installed} takes seconds for fused attention in float16; {needed} or newer is needed: "
            f"pip install 'onnxruntime>={needed}', or convert with --form=plain"
        )
