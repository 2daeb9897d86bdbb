"""The layers that the graphs of both families share: linear layers, norms, residual sums and template heads.

Dims: B batch, L length, Q queries, D hidden, F feed-forward, V vocabulary, S slots, T slots with spare ones.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32

from converters.onnx.attention import AttentionForm
from converters.onnx.writer import TYPES, GraphWriter
from jaxtempl.config.converting import Dtype
from jaxtempl.huggingface.mapping import Head
from jaxtempl.specs.architecture import Architecture

GraphParams = Mapping[str, Any]  # nested dicts of float32 arrays, in the layout of the family's model
ArrayFactory = Callable[[], Any]  # computes an array on saving
UNUSED_LOGIT = -1e4  # logit of a slot without a template


@dataclasses.dataclass(frozen=True)
class GraphOptions:
    """How a graph is written.

    Attributes:
        head: `template` gives logits [B S] at each row's last token, `lm` logits [B L V].
        dtype: Type of weights and activations; the last LayerNorm and the head are always float32.
        wide_residual: Keep the residual stream in float32 where `dtype` is fp16.
        form: Form of attention; `chunked` is for ONNX Runtime on a CPU.
        slots: Columns of a template head; those beyond the model's are padding.
    """

    head: Head
    dtype: Dtype = "fp32"
    wide_residual: bool = False
    form: AttentionForm = "fused"
    slots: int = 0


class TransformerGraph:
    """A graph in progress; its inputs are `input_ids` int32 [B L], padded on the right, and `lengths` int32 [B 1]."""

    def __init__(self, params: GraphParams, a: Architecture, options: GraphOptions) -> None:
        self._params, self._options = params, options
        self._hidden, self._eps = a.hidden, a.norm_eps
        self._dtype: Dtype = options.dtype
        self._residual_dtype: Dtype = "fp32" if options.wide_residual else options.dtype
        self._w = GraphWriter()
        self._ids = _input("input_ids", ["batch", "length"])
        self._lengths = _input("lengths", ["batch", 1])

    def _linear(
        self, x: ir.Value, name: str, shape: tuple[int, int], kernel: ArrayFactory, bias: ArrayFactory
    ) -> ir.Value:
        product = self._matmul(x, name, kernel, shape)
        return self._w.op("Add", product, self._lazy_weight(f"{name}/bias", shape[1:], bias, self._dtype))

    def _matmul(self, x: ir.Value, name: str, kernel: ArrayFactory, shape: tuple[int, int]) -> ir.Value:
        return self._w.op("MatMul", x, self._lazy_weight(f"{name}/kernel", shape, kernel, self._dtype), name=name)

    def _mlp(self, x: ir.Value, layer: int, width: int) -> ir.Value:
        """Apply the MLP, [B Q D] -> [B Q F] -> [B Q D], without the second bias."""
        up, down = (self._params["blocks"]["mlp"][part] for part in ("up", "down"))
        x = self._linear(x, "up", (self._hidden, width), layer_of(up["kernel"], layer), layer_of(up["bias"], layer))
        return self._matmul(self._w.op("Gelu", x), "down", layer_of(down["kernel"], layer), (width, self._hidden))

    def _norm(self, x: ir.Value, leaf: str, layer: int, name: str = "") -> ir.Value:
        """Apply a block's LayerNorm in the type of the residual stream."""
        stacked = self._params["blocks"][leaf]
        return self._layer_norm(x, leaf, lambda part: layer_of(stacked[part], layer), self._residual_dtype, name)

    def _layer_norm(
        self, x: ir.Value, leaf: str, make: Callable[[str], ArrayFactory], dtype: Dtype, name: str = ""
    ) -> ir.Value:
        scale, bias = (self._lazy_weight(f"{leaf}/{p}", (self._hidden,), make(p), dtype) for p in ("scale", "bias"))
        return self._w.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=self._eps, name=name)

    def _to_compute_dtype(self, x: ir.Value) -> ir.Value:
        """Cast the residual stream to the type of the computation."""
        return x if self._residual_dtype == self._dtype else self._w.cast(x, TYPES[self._dtype])

    def _add_residual(self, x: ir.Value, *others: ir.Value, name: str = "") -> ir.Value:
        """Add to the residual stream in its type; the last of `others` is a bias of that type."""
        *products, bias = others
        if self._residual_dtype != self._dtype:
            products = [self._w.cast(product, TYPES[self._residual_dtype]) for product in products]
        total = self._w.op("Add", products[0], bias)
        for product in products[1:]:
            total = self._w.op("Add", total, product)
        return self._w.op("Add", x, total, name=name)

    def _template_head(self, x: ir.Value, bias: Float32[np.ndarray, " S"] | None) -> ir.Value:
        """Apply the head, float32 [B D] -> logits [B T], with unlikely logits in spare slots."""
        kernel = np.asarray(self._params["head"]["kernel"])
        spare = max(self._options.slots - kernel.shape[1], 0)
        padded = np.pad(kernel, ((0, 0), (0, spare)))
        padded_bias = self._head_bias(kernel.shape[1], spare, bias)
        name = "logits" if padded_bias is None else ""
        logits = self._w.op("MatMul", x, self._weight("head", padded, "fp32"), name=name)
        if padded_bias is not None:
            logits = self._w.op("Add", logits, self._weight("head/bias", padded_bias, "fp32"), name="logits")
        return self._w.annotate(logits, "fp32", ["batch", padded.shape[1]])

    def _head_bias(
        self, count: int, spare: int, bias: Float32[np.ndarray, " S"] | None
    ) -> Float32[np.ndarray, " T"] | None:
        """Return the head's bias with that of spare slots; None if there is neither."""
        if bias is None and not self._options.slots:
            return None
        trained = np.zeros(count, np.float32) if bias is None else bias
        return np.pad(trained, (0, spare), constant_values=UNUSED_LOGIT)

    def _weight(self, name: str, array: Any, dtype: Dtype) -> ir.Value:
        return self._lazy_weight(name, tuple(array.shape), lambda: array, dtype)

    def _lazy_weight(self, name: str, shape: tuple[int, ...], make: ArrayFactory, dtype: Dtype) -> ir.Value:
        return self._w.weight(name, shape, dtype, lambda: np.asarray(make(), np.float32).reshape(shape))


def layer_of(stacked: Any, layer: int) -> Callable[[], Float32[np.ndarray, "..."]]:
    """Return a factory of one layer of a stacked leaf."""
    return lambda: np.asarray(stacked[layer])


def _input(name: str, dims: list[str | int]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(dims))
