"""Where a converted network parts from the real one: the first layer whose activations are not the same.

Dims: N layers, L length, D hidden.
"""

from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float, Float32

from jaxtempl.bundle import onnx_check
from jaxtempl.serve.inference.backends import OnnxRuntime

TOLERANCE = {"fp32": 1e-3, "fp16": 3e-2}  # of a layer's largest activation


def first_diverging_layer(
    model: Path, row: list[int], residuals: Float32[np.ndarray, "N L D"], dtype: str, place: int = -1
) -> str:
    """The name of the first layer that parts, and by how much; the head where none does.

    Args:
        model: model.onnx; a copy that gives its layers away is written beside it for as long as this takes.
        row: one context.
        residuals: what each layer should leave for it.
        dtype: of the model.
        place: where a template head reads; the last layer of its graph has that alone.
    """
    layers = [f"block_{layer}/residual" for layer in range(len(residuals))]
    for name, wanted, got in zip(layers, residuals, _activations(model, layers, row), strict=True):
        apart = _apart(wanted if got.shape[1] > 1 else wanted[[place]], got[0])
        if not apart <= TOLERANCE[dtype]:  # a NaN is no number below anything
            return f"{name.split('/')[0]} (by {apart:.2g} of its largest activation)"
    return "the head"


def _activations(model: Path, layers: list[str], row: list[int]) -> list[Float[np.ndarray, "1 L D"]]:
    told = onnx_check.load_graph(model)
    told.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in layers)
    beside = model.with_name("layers.onnx")  # beside it, where its external data is
    onnx.save(told, beside)
    try:
        return OnnxRuntime(beside).run(layers, np.array([row], np.int32), np.array([len(row)], np.int32))
    finally:
        beside.unlink()


def _apart(wanted: Float32[np.ndarray, "L D"], got: Float[np.ndarray, "L D"]) -> float:
    return float(np.abs(wanted - got.astype(np.float32)).max() / np.abs(wanted).max())
