"""Explicit quantisation for TensorRT: QuantizeLinear and DequantizeLinear nodes around the products of the blocks.

As TensorRT asks for it: symmetric, one scale for an activation and one a column for weights, scales of the type of the
floats around them. Weights are stored in 8 bits; what a scale is made of was measured before (`calibrate`). Embedding,
LayerNorm, attention's own products and softmax, the residual stream and the head stay as they are. No JAX.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from jaxtyping import Float, Float32, Shaped


class QuantizedFormat(NamedTuple):
    """Eight bits: their type, the largest number that they are scaled to, and the GPUs that multiply them."""

    type: ir.DataType
    most: float
    compute_capability: str


FORMATS: dict[str, QuantizedFormat] = {
    "tensorrt-int8": QuantizedFormat(ir.DataType.INT8, 127, "8.6"),
    "tensorrt-fp8": QuantizedFormat(ir.DataType.FLOAT8E4M3FN, 448, "8.9"),
}
SMALLEST_SCALE = float(np.finfo(np.float16).smallest_subnormal)  # a scale of 0 would divide by it


def quantized_activations(model: ir.Model) -> list[str]:
    """Names of the values that are to be quantised: what the weights of the blocks are multiplied with."""
    return list(dict.fromkeys(str(_inputs(node)[0].name) for node in block_matmuls(model)))


def block_matmuls(model: ir.Model) -> list[ir.Node]:
    """The products of the blocks with their weights."""
    return [
        node
        for node in model.graph
        if node.op_type == "MatMul" and str(node.name).startswith("block_") and _inputs(node)[1].const_value is not None
    ]


def insert_qdq(model: ir.Model, largest: Mapping[str, float], method: str) -> ir.Model:
    """Quantises the model in place; weights are made one by one when it is stored.

    Args:
        model: a graph of `onnx_graph`, whose products with weights are MatMul nodes.
        largest: magnitude of each value of `activations`, finite.
        method: of FORMATS.
    """
    quantizer, done = _Quantizer(model.graph, FORMATS[method]), dict[str, ir.Value]()
    for node in block_matmuls(model):
        x, weight = _inputs(node)
        name = str(x.name)
        if name not in done:  # queries, keys and values share one
            done[name] = quantizer.activation(node, x, largest[name])
        node.replace_input_with(0, done[name])
        node.replace_input_with(1, quantizer.weight(node, weight))
    return model


class _Quantizer:
    """Writes the nodes of one graph."""

    def __init__(self, graph: ir.Graph, kind: QuantizedFormat) -> None:
        self._graph, self._kind = graph, kind

    def activation(self, before: ir.Node, x: ir.Value, largest: float) -> ir.Value:
        """`x` quantised and back; what is beyond its largest magnitude saturates."""
        scale, zero = self._scale(x, np.array(largest, np.float32), before.inputs[1])
        quantized = self._node("QuantizeLinear", before, f"{x.name}/quantized", x, scale, zero)
        return self._node("DequantizeLinear", before, f"{x.name}/dequantized", quantized, scale, zero)

    def weight(self, before: ir.Node, weight: ir.Value) -> ir.Value:
        """Stored weights [in out] and back, a scale a column."""
        tensor: Any = weight.const_value
        scale, zero = self._scale(weight, np.abs(tensor.numpy()).max(axis=0).astype(np.float32), weight)
        scales: Any = scale.const_value

        def make() -> ir.Tensor:
            return ir.Tensor(_rounded(tensor.numpy().astype(np.float32), scales.numpy().astype(np.float32), self._kind))

        name = f"{weight.name}/quantized"
        stored = self._initializer(ir.LazyTensor(make, self._kind.type, tensor.shape, name=name))
        found = self._node("DequantizeLinear", before, f"{weight.name}/dequantized", stored, scale, zero, axis=1)
        del self._graph.initializers[str(weight.name)]
        return found

    def _scale(self, of: ir.Value, largest: Float32[np.ndarray, "*C"], like: Any) -> tuple[ir.Value, ir.Value]:
        """Scale, of the type of the weights `like`, and zero point."""
        scale = np.maximum(largest / np.float32(self._kind.most), SMALLEST_SCALE).astype(like.const_value.dtype.numpy())
        zero = np.zeros(scale.shape, self._kind.type.numpy())
        return (
            self._initializer(ir.Tensor(scale, name=f"{of.name}/scale")),
            self._initializer(ir.Tensor(zero, name=f"{of.name}/zero")),
        )

    def _initializer(self, tensor: Any) -> ir.Value:
        value = ir.Value(
            name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape)
        )
        self._graph.register_initializer(value)
        return value

    def _node(self, kind: str, before: ir.Node, name: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(kind, inputs, attributes, name=name)
        node.outputs[0].name = name
        self._graph.insert_before(before, node)
        return node.outputs[0]


def _rounded(
    weight: Float32[np.ndarray, "I O"], scale: Float32[np.ndarray, " O"], kind: QuantizedFormat
) -> Shaped[np.ndarray, "I O"]:
    scaled: Float[np.ndarray, "I O"] = np.clip(weight / scale[None], -kind.most, kind.most)
    return (np.rint(scaled) if kind.type == ir.DataType.INT8 else scaled).astype(kind.type.numpy())


def _inputs(node: ir.Node) -> Sequence[Any]:
    """A product's inputs, which are always there."""
    return node.inputs
