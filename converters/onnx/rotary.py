"""Rotary positions in ONNX: opset 23's operator, or slices and products of opset 20.

Dims: B batch, Q queries, H heads, K head_dim, R rotated dims of a head.
"""

from typing import Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from converters.onnx.attention import AttentionForm, merge_heads, split_heads
from converters.onnx.writer import GraphWriter
from jaxtempl.config.converting import Dtype
from jaxtempl.models import attention
from jaxtempl.specs.architecture import NeoXArchitecture


@runtime_checkable
class RotaryBuilder(Protocol):
    """[B Q (H K)] -> the same, each head's first R dims turned by its position [B Q]."""

    def __call__(self, x: ir.Value, positions: ir.Value) -> ir.Value:
        """`x`, turned."""
        ...


def rotary_builder(form: AttentionForm, w: GraphWriter, a: NeoXArchitecture, dtype: Dtype) -> RotaryBuilder:
    """The form's rotation, its tables written as initializers where anything is rotated."""
    return PlainRotary(w, a, dtype) if form == "plain" else FusedRotary(w, a, dtype)


class FusedRotary:
    """Opset 23's own operator."""

    def __init__(self, w: GraphWriter, a: NeoXArchitecture, dtype: Dtype) -> None:
        self._w, self._a = w, a
        self._tables = _tables(w, a, dtype, a.rotary // 2)

    def __call__(self, x: ir.Value, positions: ir.Value) -> ir.Value:
        """See Rotary."""
        if not self._a.rotary:
            return x
        heads, dims = self._a.heads, self._a.rotary
        return self._w.op("RotaryEmbedding", x, *self._tables, positions, num_heads=heads, rotary_embedding_dim=dims)


class PlainRotary:
    """Slices and products."""

    def __init__(self, w: GraphWriter, a: NeoXArchitecture, dtype: Dtype) -> None:
        self._w, self._a = w, a
        self._cos, self._sin = _tables(w, a, dtype, a.rotary)

    def __call__(self, x: ir.Value, positions: ir.Value) -> ir.Value:
        """See Rotary."""
        w, half = self._w, self._a.rotary // 2
        if not half:
            return x
        heads = split_heads(w, self._a, x)  # [B Q H K]
        first, second, rest = (self._dims(heads, *cut) for cut in ((0, half), (half, 2 * half), (2 * half, 2**31)))
        cos, sin = (w.op("Gather", t, w.op("Unsqueeze", positions, w.constant([2]))) for t in (self._cos, self._sin))
        turned = w.op("Concat", first, second, axis=-1)
        partner = w.op("Concat", w.op("Neg", second), first, axis=-1)
        turned = w.op("Add", w.op("Mul", turned, cos), w.op("Mul", partner, sin))  # cos and sin [B Q 1 R]
        return merge_heads(w, self._a, w.op("Concat", turned, rest, axis=-1) if 2 * half < self._a.head_dim else turned)

    def _dims(self, x: ir.Value, start: int, stop: int) -> ir.Value:
        """Dims `start` to `stop` of each head."""
        return self._w.op("Slice", x, *(self._w.constant([i]) for i in (start, stop, -1)))


def _tables(w: GraphWriter, a: NeoXArchitecture, dtype: Dtype, columns: int) -> tuple[ir.Value, ir.Value]:
    """Cos and sin [positions columns], computed in float32."""
    angles = attention.rotary_angles(a.rotary, a.rotary_base, a.positions)
    shape = (a.positions, columns)
    cos, sin = (np.asarray(table)[:, 0, :columns] for table in angles)
    return w.weight("rotary/cos", shape, dtype, lambda: cos), w.weight("rotary/sin", shape, dtype, lambda: sin)
