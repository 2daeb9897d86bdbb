"""Attention in ONNX, in three forms of the same arithmetic.

`fused` is opset 23's Attention, which TensorRT and newer ONNX Runtimes run as one kernel; `chunked` is an Attention for
each quarter of the queries where it is causal, which is faster on a CPU from 256 tokens on;
`plain` is products, softmax and slices of opset 20, for consumers that lack those.

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
    """What a form of attention does; q is already divided by the root of K."""

    def causal(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """[B L (H K)] of each -> [B L (H K)]: every position attends to itself and those before it."""
        ...

    def seeing(self, q: ir.Value, k: ir.Value, v: ir.Value, seen: ir.Value) -> ir.Value:
        """Queries [B Q (H K)] to the keys [B L (H K)] that they have `seen` bool [B 1 Q L]."""
        ...


def attention_builder(
    form: AttentionForm, w: GraphWriter, a: Architecture, dtype: Dtype, length: ir.Value
) -> AttentionBuilder:
    """The form's attention.

    Args:
        form: of attention.
        w: where it is written.
        a: the architecture.
        dtype: of q, k and v.
        length: int64 [1], L of the input.
    """
    if form == "fused":
        return FusedAttention(w, a)
    return ChunkedAttention(w, a, dtype, length) if form == "chunked" else PlainAttention(w, a, dtype, length)


class FusedAttention:
    """Opset 23's own operators."""

    def __init__(self, w: GraphWriter, a: Architecture) -> None:
        self._w, self._a = w, a

    def causal(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """See Attention."""
        return self._attend(q, k, v, is_causal=1)

    def seeing(self, q: ir.Value, k: ir.Value, v: ir.Value, seen: ir.Value) -> ir.Value:
        """See Attention."""
        return self._attend(q, k, v, seen)

    def _attend(self, *inputs: ir.Value, is_causal: int = 0) -> ir.Value:
        heads = self._a.heads
        return self._w.op("Attention", *inputs, q_num_heads=heads, kv_num_heads=heads, scale=1.0, is_causal=is_causal)


class ChunkedAttention(FusedAttention):
    """Queries in parts, each with the keys up to its own end: exact, and 5/8 of the work.

    For ONNX Runtime's Attention on a CPU, which computes the scores that a causal mask hides, too.
    """

    def __init__(self, w: GraphWriter, a: Architecture, dtype: Dtype, length: ir.Value) -> None:
        super().__init__(w, a)
        self._dtype: Dtype = dtype
        self._ends = [
            w.op("Div", w.op("Mul", length, w.constant([i])), w.constant([CHUNKS])) for i in range(CHUNKS + 1)
        ]
        least = w.constant(np.finfo(NUMPY[dtype]).min, NUMPY[dtype])
        mask = w.op("Where", _before(w, length), w.constant(0, NUMPY[dtype]), least)  # [L L]
        self._masks = [
            self._cut(self._cut(mask, start, end, 0), w.constant([0]), end, 1)
            for start, end in itertools.pairwise(self._ends)
        ]

    def causal(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """See Attention."""
        parts: list[ir.Value] = []
        for start, end, mask in zip(self._ends, self._ends[1:], self._masks, strict=False):
            query = self._tokens(q, start, end)
            seen = (self._tokens(x, self._w.constant([0]), end) for x in (k, v))
            parts.append(self._attend(query, *((k, v) if mask is self._masks[-1] else seen), mask))
        return self._w.op("Concat", *parts, axis=1)

    def _tokens(self, x: ir.Value, start: ir.Value, end: ir.Value) -> ir.Value:
        """[B L (H K)] from one position to another."""
        return self._w.told(self._cut(x, start, end, 1), self._dtype, ["batch", None, self._a.hidden])

    def _cut(self, x: ir.Value, start: ir.Value, end: ir.Value, axis: int) -> ir.Value:
        return self._w.op("Slice", x, start, end, self._w.constant([axis]))


class PlainAttention:
    """Products, softmax, slices and a finite mask."""

    def __init__(self, w: GraphWriter, a: Architecture, dtype: Dtype, length: ir.Value) -> None:
        self._w, self._a = w, a
        self._dtype: Dtype = dtype
        self._before = _before(w, length)

    def causal(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """See Attention."""
        return self.seeing(q, k, v, self._before)

    def seeing(self, q: ir.Value, k: ir.Value, v: ir.Value, seen: ir.Value) -> ir.Value:
        """See Attention; `causal` is this with a mask [L L]."""
        w = self._w
        q, v = (w.op("Transpose", split_heads(w, self._a, x), perm=[0, 2, 1, 3]) for x in (q, v))
        k = w.op("Transpose", split_heads(w, self._a, k), perm=[0, 2, 3, 1])
        least = w.constant(np.finfo(NUMPY[self._dtype]).min, NUMPY[self._dtype])  # an infinity would make NaNs in fp16
        scores = w.op("Where", seen, w.op("MatMul", q, k), least)
        mixed = w.op("MatMul", w.op("Softmax", scores, axis=-1), v)
        return merge_heads(w, self._a, w.op("Transpose", mixed, perm=[0, 2, 1, 3]))


def split_heads(w: GraphWriter, a: Architecture, x: ir.Value) -> ir.Value:
    """[B Q (H K)] -> [B Q H K]."""
    return w.op("Reshape", x, w.constant([0, 0, a.heads, a.head_dim]))


def merge_heads(w: GraphWriter, a: Architecture, x: ir.Value) -> ir.Value:
    """[B Q H K] -> [B Q (H K)]."""
    return w.op("Reshape", x, w.constant([0, 0, a.hidden]))


def _before(w: GraphWriter, length: ir.Value) -> ir.Value:
    """Whether a query sees a key, bool [L L]."""
    each = w.op("Range", w.constant(0), w.op("Squeeze", length), w.constant(1))
    return w.op("LessOrEqual", w.op("Unsqueeze", each, w.constant([0])), w.op("Unsqueeze", each, w.constant([1])))
