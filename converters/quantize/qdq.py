"""Explicit quantization for TensorRT: QuantizeLinear and DequantizeLinear nodes around the MatMuls of the blocks.

TensorRT requires symmetric quantization, one scale per activation, one per column of weights, and scales of the type of
the surrounding floats. Weights are stored in 8 bits; `calibrate` measures the ranges of activations. Embedding,
LayerNorm, attention's products and softmax, the residual stream and the head stay floats. No JAX.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from jaxtyping import Float, Float32, Shaped


class QuantizedFormat(NamedTuple):
    """An 8-bit type.

    Attributes:
        type: Type of the numbers.
        maximum: Largest number of that type.
        compute_capability: First compute capability of GPUs that multiply it.
    """

    type: ir.DataType
    maximum: float
    compute_capability: str


FORMATS: dict[str, QuantizedFormat] = {
    "tensorrt-int8": QuantizedFormat(ir.DataType.INT8, 127, "8.6"),
    "tensorrt-fp8": QuantizedFormat(ir.DataType.FLOAT8E4M3FN, 448, "8.9"),
}
SMALLEST_SCALE = float(np.finfo(np.float16).smallest_subnormal)  # not 0: values are divided by their scale


def quantized_activations(model: ir.Model) -> list[str]:
    """Return the names of the activations to quantize: the inputs of the blocks' MatMuls."""
    return list(dict.fromkeys(str(_inputs(node)[0].name) for node in block_matmuls(model)))


def block_matmuls(model: ir.Model) -> list[ir.Node]:
    """Return the MatMuls of activations and weights in the blocks."""
    return [
        node
        for node in model.graph
        if node.op_type == "MatMul" and str(node.name).startswith("block_") and _inputs(node)[1].const_value is not None
    ]


def insert_qdq(model: ir.Model, maxima: Mapping[str, float], method: str) -> ir.Model:
    """Quantize the model in place; each weight is computed on saving.

    Args:
        model: A graph of `converters.onnx`, which multiplies weights by MatMul nodes.
        maxima: Largest magnitude of each value of `quantized_activations`, finite.
        method: A key of FORMATS.
    """
    quantizer, dequantized = _Quantizer(model.graph, FORMATS[method]), dict[str, ir.Value]()
    for node in block_matmuls(model):
        x, weight = _inputs(node)
        name = str(x.name)
        if name not in dequantized:  # queries, keys and values share one
            dequantized[name] = quantizer.activation(node, x, maxima[name])
        node.replace_input_with(0, dequantized[name])
        node.replace_input_with(1, quantizer.weight(node, weight))
    return model


class _Quantizer:
    """A writer of the quantization nodes of one graph."""

    def __init__(self, graph: ir.Graph, kind: QuantizedFormat) -> None:
        self._graph, self._kind = graph, kind

    def activation(self, before: ir.Node, x: ir.Value, largest: float) -> ir.Value:
        """Return `x` quantized and dequantized; values beyond `largest` saturate."""
        scale, zero = self._scale(x, np.array(largest, np.float32), before.inputs[1])
        quantized = self._node("QuantizeLinear", before, f"{x.name}/quantized", x, scale, zero)
        return self._node("DequantizeLinear", before, f"{x.name}/dequantized", quantized, scale, zero)

    def weight(self, before: ir.Node, weight: ir.Value) -> ir.Value:
        """Return the weights [in out] stored in 8 bits and dequantized, with one scale per column."""
        tensor: Any = weight.const_value
        scale, zero = self._scale(weight, np.abs(tensor.numpy()).max(axis=0).astype(np.float32), weight)
        scales: Any = scale.const_value

        def make() -> ir.Tensor:
            return ir.Tensor(
                _quantize_weight(tensor.numpy().astype(np.float32), scales.numpy().astype(np.float32), self._kind)
            )

        name = f"{weight.name}/quantized"
        stored = self._initializer(ir.LazyTensor(make, self._kind.type, tensor.shape, name=name))
        dequantized = self._node("DequantizeLinear", before, f"{weight.name}/dequantized", stored, scale, zero, axis=1)
        del self._graph.initializers[str(weight.name)]
        return dequantized

    def _scale(self, value: ir.Value, largest: Float32[np.ndarray, "*C"], like: Any) -> tuple[ir.Value, ir.Value]:
        """Return the scale, of the type of the weights `like`, and the zero point."""
        scale = np.maximum(largest / np.float32(self._kind.maximum), SMALLEST_SCALE).astype(
            like.const_value.dtype.numpy()
        )
        zero = np.zeros(scale.shape, self._kind.type.numpy())
        return (
            self._initializer(ir.Tensor(scale, name=f"{value.name}/scale")),
            self._initializer(ir.Tensor(zero, name=f"{value.name}/zero")),
        )

    def _initializer(self, tensor: Any) -> ir.Value:
        initializer = ir.Value(
            name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape)
        )
        self._graph.register_initializer(initializer)
        return initializer

    def _node(self, kind: str, before: ir.Node, name: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(kind, inputs, attributes, name=name)
        node.outputs[0].name = name
        self._graph.insert_before(before, node)
        return node.outputs[0]


def _quantize_weight(
    weight: Float32[np.ndarray, "I O"], scale: Float32[np.ndarray, " O"], kind: QuantizedFormat
) -> Shaped[np.ndarray, "I O"]:
    scaled: Float[np.ndarray, "I O"] = np.clip(weight / scale[None], -kind.maximum, kind.maximum)
    return (np.rint(scaled) if kind.type == ir.DataType.INT8 else scaled).astype(kind.type.numpy())


def _inputs(node: ir.Node) -> Sequence[Any]:
    """Return the inputs of a MatMul, which always exist."""
    return node.inputs
