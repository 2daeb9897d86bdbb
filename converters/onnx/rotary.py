"""Rotary position embeddings in ONNX: opset 23's operator, or slices and products of opset 20.

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
    """Writes the rotation of the first R dims of each head, [B Q (H K)], by the positions [B Q]."""

    def __call__(self, x: ir.Value, positions: ir.Value) -> ir.Value:
        """Return `x` rotated."""
        ...


def rotary_builder(form: AttentionForm, w: GraphWriter, a: NeoXArchitecture, dtype: Dtype) -> RotaryBuilder:
    """Return the form's rotation; its tables become initializers if any dim is rotated."""
    return PlainRotary(w, a, dtype) if form == "plain" else FusedRotary(w, a, dtype)


class FusedRotary:
    """One RotaryEmbedding node of opset 23."""

    def __init__(self, w: GraphWriter, a: NeoXArchitecture, dtype: Dtype) -> None:
        self._w, self._a = w, a
        self._tables = _tables(w, a, dtype, a.rotary // 2)

    def __call__(self, x: ir.Value, positions: ir.Value) -> ir.Value:
        """See RotaryBuilder."""
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
        """See RotaryBuilder."""
        w, half = self._w, self._a.rotary // 2
        if not half:
            return x
        heads = split_heads(w, self._a, x)  # [B Q H K]
        first, second, rest = (self._dims(heads, *span) for span in ((0, half), (half, 2 * half), (2 * half, 2**31)))
        cos, sin = (w.op("Gather", t, w.op("Unsqueeze", positions, w.constant([2]))) for t in (self._cos, self._sin))
        rotated = w.op("Concat", first, second, axis=-1)
        partner = w.op("Concat", w.op("Neg", second), first, axis=-1)
        rotated = w.op("Add", w.op("Mul", rotated, cos), w.op("Mul", partner, sin))  # cos and sin [B Q 1 R]
        return merge_heads(
            w, self._a, w.op("Concat", rotated, rest, axis=-1) if 2 * half < self._a.head_dim else rotated
        )

    def _dims(self, x: ir.Value, start: int, stop: int) -> ir.Value:
        """Slice dims `start` to `stop` of each head."""
        return self._w.op("Slice", x, *(self._w.constant([i]) for i in (start, stop, -1)))


def _tables(w: GraphWriter, a: NeoXArchitecture, dtype: Dtype, columns: int) -> tuple[ir.Value, ir.Value]:
    """Return cos and sin [positions columns], computed in float32."""
    angles = attention.rotary_angles(a.rotary, a.rotary_base, a.positions)
    shape = (a.positions, columns)
    cos, sin = (np.asarray(table)[:, 0, :columns] for table in angles)
    return w.weight("rotary/cos", shape, dtype, lambda: cos), w.weight("rotary/sin", shape, dtype, lambda: sin)
