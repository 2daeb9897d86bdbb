"""Find the first layer whose activations differ between a converted network and its source.

Dims: N layers, L length, D hidden.
"""

from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float, Float32

from jaxtempl.bundle import onnx_check
from jaxtempl.serve.inference.backends import OnnxRuntime

TOLERANCE = {"fp32": 1e-3, "fp16": 3e-2}  # share of a layer's largest activation


def first_diverging_layer(
    model: Path, row: list[int], residuals: Float32[np.ndarray, "N L D"], dtype: str, position: int = -1
) -> str:
    """Return the name of the first layer that diverges, and by how much; the head if no layer does.

    Args:
        model: model.onnx; a copy with the layers as outputs is written next to it while this runs.
        row: token ids of one context.
        residuals: expected residual stream after each layer.
        dtype: type of the model.
        position: position that a template head reads; the graph's last layer computes only that.
    """
    layers = [f"block_{layer}/residual" for layer in range(len(residuals))]
    for name, expected, actual in zip(layers, residuals, _activations(model, layers, row), strict=True):
        difference = _relative_difference(expected if actual.shape[1] > 1 else expected[[position]], actual[0])
        if not difference <= TOLERANCE[dtype]:  # true for NaN
            return f"{name.split('/')[0]} (by {difference:.2g} of its largest activation)"
    return "the head"


def _activations(model: Path, layers: list[str], row: list[int]) -> list[Float[np.ndarray, "1 L D"]]:
    graph = onnx_check.load_graph(model)
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in layers)
    copy = model.with_name("layers.onnx")  # in the same folder as its external data
    onnx.save(graph, copy)
    try:
        return OnnxRuntime(copy).run(layers, np.array([row], np.int32), np.array([len(row)], np.int32))
    finally:
        copy.unlink()


def _relative_difference(expected: Float32[np.ndarray, "L D"], actual: Float[np.ndarray, "L D"]) -> float:
    return float(np.abs(expected - actual.astype(np.float32)).max() / np.abs(expected).max())
