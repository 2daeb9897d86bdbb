"""GPT-NeoX's parameters -> an ONNX graph.

What need not be done at each call is done here once: each head's [q|k|v] columns are taken apart, 1/sqrt(K) is
multiplied into q, rotary angles are tables, and the biases of attention and MLP are one where both are added at once.

Dims: B batch, L length, Q queries (L, or 1 in the last block), D hidden, H heads, K head_dim, V vocabulary, S slots.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from converters.onnx import rotary
from converters.onnx.attention import CHUNKS, OPSET, AttentionBuilder, attention_builder
from converters.onnx.layers import ArrayFactory, GraphOptions, GraphParams, TransformerGraph, layer_of
from converters.onnx.rotary import RotaryBuilder
from converters.onnx.writer import TYPES
from jaxtempl.specs.architecture import NeoXArchitecture


class AttentionOperators(NamedTuple):
    """What a form of the graph does with queries and keys."""

    attention: AttentionBuilder
    rotate: RotaryBuilder


class NeoXGraph(TransformerGraph):
    """A graph of GPT-NeoX."""

    def __init__(self, params: GraphParams, a: NeoXArchitecture, options: GraphOptions) -> None:
        super().__init__(params, a, options)
        self._a = a

    def model(self) -> ir.Model:
        """The whole graph."""
        w, template = self._w, self._options.head == "template"
        own = w.op("Shape", self._ids, start=1, end=2)
        ids, length = self._padded(own) if self._options.form == "chunked" else (self._ids, own)
        shape = w.op("Shape", ids)
        every = w.op("Range", w.constant(0), w.op("Squeeze", length), w.constant(1))
        positions = w.op("Expand", every, shape)  # [B L]
        kernel = self._kernel(length)
        x = self._embed(ids)
        for layer in range(self._a.layers - template):
            x = self._block(x, layer, kernel, positions)
        if template:
            x = self._last(x, kernel, positions, every, own)
        elif self._options.form == "chunked":
            x = w.op("Slice", x, w.constant([0]), own, w.constant([1]))
        inputs = [self._ids, self._lengths] if template else [self._ids]
        return w.model(inputs, self._head(x), OPSET[self._options.form])

    def _kernel(self, length: ir.Value) -> AttentionOperators:
        form, w, a, dtype = self._options.form, self._w, self._a, self._dtype
        return AttentionOperators(
            attention_builder(form, w, a, dtype, length), rotary.rotary_builder(form, w, a, dtype)
        )

    def _padded(self, own: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The tokens and their length, at least one for each part of the queries; none before sees what is added."""
        w = self._w
        length = w.op("Max", own, w.constant([CHUNKS]))
        missing = w.op("Concat", w.constant([0, 0, 0]), w.op("Sub", length, own), axis=0)
        return w.op("Pad", self._ids, missing), length

    def _embed(self, ids: ir.Value) -> ir.Value:
        table = self._weight("embed", self._params["embed"]["embedding"], self._stream)
        return self._w.op("Gather", table, ids, name="embedded")

    def _block(self, x: ir.Value, layer: int, kernel: AttentionOperators, positions: ir.Value) -> ir.Value:
        """The residual stream [B L D] after a layer."""
        with self._w.scope(f"block_{layer}"):
            q, k, v = self._project(self._normed(x, "attention_norm", layer), "qkv", layer)
            q, k = kernel.rotate(q, positions), kernel.rotate(k, positions)
            return self._rest(x, kernel.attention.causal(q, k, v), layer)

    def _last(
        self, x: ir.Value, kernel: AttentionOperators, positions: ir.Value, every: ir.Value, length: ir.Value
    ) -> ir.Value:
        """The residual stream [B 1 D] after the last layer, at each row's last token alone.

        Keys and values are of all tokens; queries, output and MLP are of that one, which spares 2.6 to 3.5 % of all
        FLOPs.
        """
        w, layer = self._w, self._a.layers - 1
        with w.scope(f"block_{layer}"):
            at = self._last_place(length)  # [B 1]
            normed = self._normed(x, "attention_norm", layer)
            (q,) = self._project(self._pick(normed, at), "q", layer)
            k, v = self._project(normed, "kv", layer)
            q, k = kernel.rotate(q, at), kernel.rotate(k, positions)
            seen = w.op("LessOrEqual", every, w.op("Unsqueeze", at, w.constant([1, 2])))  # [B 1 1 L]
            return self._rest(self._pick(x, at), kernel.attention.seeing(q, k, v, seen), layer)

    def _last_place(self, length: ir.Value) -> ir.Value:
        """`lengths - 1` within the row: a server's warm-up may send length 0, and no length may read elsewhere."""
        w = self._w
        at = w.op("Sub", w.cast(self._lengths, ir.DataType.INT64), w.constant(1))
        return w.op("Min", w.op("Max", at, w.constant(0)), w.op("Sub", length, w.constant(1)))

    def _pick(self, x: ir.Value, at: ir.Value) -> ir.Value:
        """[B L D] -> [B 1 D] at place [B 1]."""
        return self._w.op("GatherND", x, self._w.op("Unsqueeze", at, self._w.constant([2])), batch_dims=1)

    def _project(self, x: ir.Value, parts: str, layer: int) -> list[ir.Value]:
        """Queries, keys or values [B Q (H K)]; queries divided by the root of K."""
        shape = (self._a.hidden, self._a.hidden)
        return [self._linear(x, part, shape, *self._columns(part, layer)) for part in parts]

    def _columns(self, part: str, layer: int) -> tuple[ArrayFactory, ArrayFactory]:
        """Kernel [D H K] and bias [H K] of one of q, k and v, out of each head's [q|k|v]."""
        a, own = self._a, self._params["blocks"]["attention"]["query_key_value"]
        index, scale = "qkv".index(part), np.float32(a.head_dim**-0.5 if part == "q" else 1)
        return (
            lambda: np.asarray(own["kernel"][layer])[:, :, index] * scale,
            lambda: np.asarray(own["bias"][layer]).reshape(a.heads, 3, -1)[:, index] * scale,
        )

    def _rest(self, x: ir.Value, attended: ir.Value, layer: int) -> ir.Value:
        """What comes after attention [B Q (H K)]: its output, the MLP, and both residual sums."""
        blocks, a = self._params["blocks"], self._a
        out = self._product(
            attended, "out", layer_of(blocks["attention"]["out"]["kernel"], layer), (a.hidden, a.hidden)
        )
        biases = [layer_of(blocks[m][p]["bias"], layer) for m, p in (("attention", "out"), ("mlp", "down"))]
        if a.parallel_residual:
            down = self._mlp(self._normed(x, "mlp_norm", layer), layer, a.feed_forward)
            bias = self._weight_of("bias", (a.hidden,), lambda: biases[0]() + biases[1](), self._stream)
            return self._sum(x, out, down, bias, name="residual")
        x = self._sum(x, out, self._weight_of("out/bias", (a.hidden,), biases[0], self._stream))
        down = self._mlp(self._normed(x, "mlp_norm", layer), layer, a.feed_forward)
        return self._sum(x, down, self._weight_of("down/bias", (a.hidden,), biases[1], self._stream), name="residual")

    def _head(self, x: ir.Value) -> ir.Value:
        """[B Q D] -> logits: float32 [B S] or [B L V]."""
        w, kernel = self._w, self._params["head"]["kernel"]
        x = self._layer_norm(w.cast(x, TYPES["fp32"]), "norm", lambda part: lambda: self._params["norm"][part], "fp32")
        if self._options.head == "template":
            return self._slots(w.op("Squeeze", x, w.constant([1])), None)
        logits = w.op("MatMul", x, self._weight("head", kernel, "fp32"), name="logits")
        return self._logits(logits, ["batch", "length", kernel.shape[1]])

    def _normed(self, x: ir.Value, name: str, layer: int) -> ir.Value:
        """LayerNorm of the residual stream, in the type of the computation."""
        return self._narrow(self._norm(x, name, layer))
