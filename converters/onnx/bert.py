"""BERT's parameters -> an ONNX graph.

All tokens have type 0, so its embedding is folded into the table of positions; 1/sqrt(K) is folded into q.

Dims: B batch, L length, Q queries (L, or 1 in the last block), D hidden, H heads, K head_dim, V vocabulary, S slots.
"""

import numpy as np
import onnx_ir as ir

from converters.onnx import attention as onnx_attention
from converters.onnx.attention import OPSET, AttentionBuilder
from converters.onnx.layers import ArrayFactory, GraphOptions, GraphParams, TransformerGraph, layer_of
from converters.onnx.writer import TYPES
from jaxtempl.errors import UsageError
from jaxtempl.specs.architecture import BertArchitecture

PROJECTIONS = {"q": "query", "k": "key", "v": "value"}


class BertGraph(TransformerGraph):
    """A graph of BERT."""

    def __init__(self, params: GraphParams, a: BertArchitecture, options: GraphOptions) -> None:
        """Raises UsageError if the form needs causal attention."""
        super().__init__(params, a, options)
        self._a = a
        if options.form == "chunked":
            raise UsageError(
                "--form=chunked needs causal attention, and BERT's is bidirectional; choose --form=fused or plain"
            )

    def model(self) -> ir.Model:
        """Return the whole graph."""
        w, has_template_head = self._w, self._options.head == "template"
        length = w.op("Shape", self._ids, start=1, end=2)
        attention = onnx_attention.attention_builder(self._options.form, w, self._a, self._dtype, length)
        mask, x = self._padding_mask(length), self._embed(length)
        every_query = self._expand_queries(mask, length)
        for layer in range(self._a.layers):
            cls_only = has_template_head and self._a.pooling == "first" and layer == self._a.layers - 1
            x = self._block(x, layer, attention, mask if cls_only else every_query, cls_only)
        logits = self._classifier(x, mask) if has_template_head else self._language_head(x)
        return w.model([self._ids, self._lengths], logits, OPSET[self._options.form])

    def _padding_mask(self, length: ir.Value) -> ir.Value:
        """Return the mask of real positions, bool [B 1 1 L]; the first is always real: a warm-up may send length 0."""
        w = self._w
        positions = w.op("Range", w.constant(0), w.op("Squeeze", length), w.constant(1))
        ends = w.op("Max", w.cast(self._lengths, ir.DataType.INT64), w.constant(1))
        return w.op("Less", positions, w.op("Unsqueeze", ends, w.constant([1, 2])))

    def _expand_queries(self, mask: ir.Value, length: ir.Value) -> ir.Value:
        """Expand [B 1 1 L] to [B 1 L L]: ONNX Runtime's Attention needs a row of the mask for each query."""
        one = self._w.constant([1])
        return self._w.op("Expand", mask, self._w.op("Concat", one, one, length, one, axis=0))

    def _embed(self, length: ir.Value) -> ir.Value:
        w, embed = self._w, self._params["embed"]
        words = w.op("Gather", self._weight("embed", embed["embedding"], self._residual_dtype), self._ids)
        shape = (self._a.positions, self._a.hidden)
        table = self._lazy_weight(
            "positions",
            shape,
            lambda: np.asarray(embed["positions"]) + np.asarray(embed["types"])[:1],
            self._residual_dtype,
        )
        positions = w.op("Slice", table, w.constant([0]), length, w.constant([0]))
        x = w.op("Add", words, positions)
        norm = embed["norm"]
        return self._layer_norm(x, "embed_norm", lambda part: lambda: norm[part], self._residual_dtype, "embedded")

    def _block(self, x: ir.Value, layer: int, attention: AttentionBuilder, mask: ir.Value, cls_only: bool) -> ir.Value:
        """Return the residual stream after a layer: [B L D], or [B 1 D] of [CLS] in the last before a classifier."""
        w, a, blocks = self._w, self._a, self._params["blocks"]
        with w.scope(f"block_{layer}"):
            query = self._first_position(x) if cls_only else x
            q, k, v = (
                self._project(y, projection, layer) for y, projection in zip((query, x, x), PROJECTIONS, strict=True)
            )
            out, down = blocks["attention"]["out"], blocks["mlp"]["down"]
            mixed = attention.masked(q, k, v, mask)
            product = self._matmul(mixed, "out", layer_of(out["kernel"], layer), (a.hidden, a.hidden))
            total = self._add_residual(query, product, self._bias("out", out, layer))
            x = self._norm(total, "attention_norm", layer)
            product = self._mlp(self._to_compute_dtype(x), layer, a.feed_forward)
            total = self._add_residual(x, product, self._bias("down", down, layer))
            return self._norm(total, "mlp_norm", layer, name="residual")

    def _first_position(self, x: ir.Value) -> ir.Value:
        """Slice [B L D] to [B 1 D], the position of [CLS]."""
        return self._w.op("Slice", x, *(self._w.constant([i]) for i in (0, 1, 1)))

    def _bias(self, name: str, linear: GraphParams, layer: int) -> ir.Value:
        return self._lazy_weight(
            f"{name}/bias", (self._a.hidden,), layer_of(linear["bias"], layer), self._residual_dtype
        )

    def _project(self, x: ir.Value, projection: str, layer: int) -> ir.Value:
        """Return queries, keys or values [B Q (H K)]; queries are divided by the square root of K."""
        linear = self._params["blocks"]["attention"][PROJECTIONS[projection]]
        scale = np.float32(self._a.head_dim**-0.5 if projection == "q" else 1)

        def scaled(leaf: str) -> ArrayFactory:
            return lambda: np.asarray(linear[leaf][layer]) * scale

        shape = (self._a.hidden, self._a.hidden)
        return self._linear(self._to_compute_dtype(x), projection, shape, scaled("kernel"), scaled("bias"))

    def _classifier(self, x: ir.Value, mask: ir.Value) -> ir.Value:
        """Apply the template head to the pooled positions, [B Q D] -> logits float32 [B S]."""
        x = self._w.cast(x, TYPES["fp32"])
        pooled = self._mean(x, mask) if self._a.pooling == "mean" else self._cls(x)
        return self._template_head(pooled, np.asarray(self._params["head"]["bias"]))

    def _cls(self, x: ir.Value) -> ir.Value:
        """Apply the pooler to [CLS], [B 1 D] -> [B D]."""
        w, pooler = self._w, self._params["pooler"]
        x = w.op("Squeeze", x, w.constant([1]))
        pooled = w.op("MatMul", x, self._weight("pooler", pooler["kernel"], "fp32"))
        return w.op("Tanh", w.op("Add", pooled, self._weight("pooler/bias", pooler["bias"], "fp32")))

    def _mean(self, x: ir.Value, mask: ir.Value) -> ir.Value:
        """Return the mean of the real positions, [B L D] -> [B D]."""
        w, last = self._w, self._w.constant([-1])
        real = w.cast(w.op("Squeeze", mask, w.constant([1])), TYPES["fp32"])  # [B 1 L]
        return w.op("Squeeze", w.op("Div", w.op("MatMul", real, x), w.op("ReduceSum", real, last)), w.constant([1]))

    def _language_head(self, x: ir.Value) -> ir.Value:
        """Apply the masked language model's head, [B L D] -> logits float32 [B L V]."""
        w, head = self._w, self._params["head"]
        x = w.op("MatMul", w.cast(x, TYPES["fp32"]), self._weight("transform", head["transform"]["kernel"], "fp32"))
        x = w.op("Gelu", w.op("Add", x, self._weight("transform/bias", head["transform"]["bias"], "fp32")))
        x = self._layer_norm(x, "head_norm", lambda part: lambda: head["norm"][part], "fp32")
        table = self._weight("head", np.asarray(self._params["embed"]["embedding"]).T, "fp32")
        logits = w.op("Add", w.op("MatMul", x, table), self._weight("head/bias", head["bias"], "fp32"), name="logits")
        return w.annotate(logits, "fp32", ["batch", "length", self._a.vocabulary])
