"""Attention in ONNX, in three forms of the same arithmetic.

- `fused` is opset 23's Attention, which TensorRT and newer ONNX Runtimes run as one kernel.
- `chunked` splits the queries of causal attention into four Attention nodes: faster on a CPU from 256 tokens on.
- `plain` uses the products, softmax and slices of opset 20, for consumers that lack the other operators, such as ONNX
  Runtime from 1.17 on.

Dims: B batch, L length, Q queries (L, or 1 in the last block), H heads, K head_dim.
"""

import itertools
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from converters.onnx.writer import NUMPY, GraphWriter
from jaxtempl.config.converting import Dtype
from jaxtempl.specs.architecture import Architecture

AttentionForm = Literal["fused", "chunked", "plain"]
OPSET: dict[AttentionForm, int] = {"fused": 23, "chunked": 23, "plain": 20}
CHUNKS = 4  # of the queries in the `chunked` form; with more, the slices cost what they save


@runtime_checkable
class AttentionBuilder(Protocol):
    """Writes attention in one form; q is already divided by the square root of K."""

    def causal(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Attend causally, [B L (H K)] of each -> [B L (H K)]: a position sees itself and those before it."""
        ...

    def masked(self, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
        """Attend from queries [B Q (H K)] to the keys [B L (H K)] where `mask`, bool [B 1 Q L], is true."""
        ...


def attention_builder(
    form: AttentionForm, w: GraphWriter, a: Architecture, dtype: Dtype, length: ir.Value
) -> AttentionBuilder:
    """Return the builder of a form.

    Args:
        form: Form of attention.
        w: Writer of the graph.
        a: Architecture of the model.
        dtype: Type of q, k and v.
        length: L of the input, int64 [1].
    """
    if form == "fused":
        return FusedAttention(w, a)
    return ChunkedAttention(w, a, dtype, length) if form == "chunked" else PlainAttention(w, a, dtype, length)


class FusedAttention:
    """One Attention node of opset 23."""

    def __init__(self, w: GraphWriter, a: Architecture) -> None:
        self._w, self._a = w, a

    def causal(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """See AttentionBuilder."""
        return self._attend(q, k, v, is_causal=1)

    def masked(self, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
        """See AttentionBuilder."""
        return self._attend(q, k, v, mask)

    def _attend(self, *inputs: ir.Value, is_causal: int = 0) -> ir.Value:
        heads = self._a.heads
        return self._w.op("Attention", *inputs, q_num_heads=heads, kv_num_heads=heads, scale=1.0, is_causal=is_causal)


class ChunkedAttention(FusedAttention):
    """Chunks of the queries, each with the keys up to the chunk's end: exact, and 5/8 of the operations.

    ONNX Runtime's Attention on a CPU also computes the scores that a causal mask hides; chunks avoid most of them.
    """

    def __init__(self, w: GraphWriter, a: Architecture, dtype: Dtype, length: ir.Value) -> None:
        super().__init__(w, a)
        self._dtype: Dtype = dtype
        self._bounds = [
            w.op("Div", w.op("Mul", length, w.constant([i])), w.constant([CHUNKS])) for i in range(CHUNKS + 1)
        ]
        lowest = w.constant(np.finfo(NUMPY[dtype]).min, NUMPY[dtype])
        mask = w.op("Where", _causal_mask(w, length), w.constant(0, NUMPY[dtype]), lowest)  # [L L]
        self._masks = [
            self._slice(self._slice(mask, start, end, 0), w.constant([0]), end, 1)
            for start, end in itertools.pairwise(self._bounds)
        ]

    def causal(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """See AttentionBuilder."""
        chunks: list[ir.Value] = []
        for start, end, mask in zip(self._bounds, self._bounds[1:], self._masks, strict=False):
            query = self._positions(q, start, end)
            visible = (self._positions(x, self._w.constant([0]), end) for x in (k, v))
            chunks.append(self._attend(query, *((k, v) if mask is self._masks[-1] else visible), mask))
        return self._w.op("Concat", *chunks, axis=1)

    def _positions(self, x: ir.Value, start: ir.Value, end: ir.Value) -> ir.Value:
        """Slice [B L (H K)] along its positions."""
        return self._w.annotate(self._slice(x, start, end, 1), self._dtype, ["batch", None, self._a.hidden])

    def _slice(self, x: ir.Value, start: ir.Value, end: ir.Value, axis: int) -> ir.Value:
        return self._w.op("Slice", x, start, end, self._w.constant([axis]))


class PlainAttention:
    """Products, a softmax, slices and a finite mask."""

    def __init__(self, w: GraphWriter, a: Architecture, dtype: Dtype, length: ir.Value) -> None:
        self._w, self._a = w, a
        self._dtype: Dtype = dtype
        self._causal_mask = _causal_mask(w, length)

    def causal(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """See AttentionBuilder."""
        return self.masked(q, k, v, self._causal_mask)

    def masked(self, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
        """See AttentionBuilder; the mask may also be [L L]."""
        w = self._w
        q, v = (w.op("Transpose", split_heads(w, self._a, x), perm=[0, 2, 1, 3]) for x in (q, v))
        k = w.op("Transpose", split_heads(w, self._a, k), perm=[0, 2, 3, 1])
        lowest = w.constant(np.finfo(NUMPY[self._dtype]).min, NUMPY[self._dtype])  # infinity would make NaNs in fp16
        scores = w.op("Where", mask, w.op("MatMul", q, k), lowest)
        mixed = w.op("MatMul", w.op("Softmax", scores, axis=-1), v)
        return merge_heads(w, self._a, w.op("Transpose", mixed, perm=[0, 2, 1, 3]))


def split_heads(w: GraphWriter, a: Architecture, x: ir.Value) -> ir.Value:
    """Reshape [B Q (H K)] to [B Q H K]."""
    return w.op("Reshape", x, w.constant([0, 0, a.heads, a.head_dim]))


def merge_heads(w: GraphWriter, a: Architecture, x: ir.Value) -> ir.Value:
    """Reshape [B Q H K] to [B Q (H K)]."""
    return w.op("Reshape", x, w.constant([0, 0, a.hidden]))


def _causal_mask(w: GraphWriter, length: ir.Value) -> ir.Value:
    """Return the mask bool [L L], true where a query sees a key."""
    positions = w.op("Range", w.constant(0), w.op("Squeeze", length), w.constant(1))
    return w.op(
        "LessOrEqual", w.op("Unsqueeze", positions, w.constant([0])), w.op("Unsqueeze", positions, w.constant([1]))
    )
