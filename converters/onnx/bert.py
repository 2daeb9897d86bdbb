"""BERT's parameters -> an ONNX graph.

Token types are none, so the first row of their table is part of the table of positions; 1/sqrt(K) is multiplied into q.

Dims: B batch, L length, Q queries (L, or 1 in the last block), D hidden, H heads, K head_dim, V vocabulary, S slots.
"""

import numpy as np
import onnx_ir as ir

from converters.onnx.attention import OPSET, AttentionBuilder, attention_builder
from converters.onnx.layers import ArrayFactory, GraphOptions, GraphParams, TransformerGraph, layer_of
from converters.onnx.writer import TYPES
from jaxtempl.errors import UsageError
from jaxtempl.specs.architecture import BertArchitecture

PROJECTIONS = {"q": "query", "k": "key", "v": "value"}


class BertGraph(TransformerGraph):
    """A graph of BERT."""

    def __init__(self, params: GraphParams, a: BertArchitecture, options: GraphOptions) -> None:
        """Raises UsageError where the form is one of causal attention."""
        super().__init__(params, a, options)
        self._a = a
        if options.form == "chunked":
            raise UsageError("--form=chunked is of causal attention, and BERT's is not; choose fused or plain")

    def model(self) -> ir.Model:
        """The whole graph."""
        w, template = self._w, self._options.head == "template"
        length = w.op("Shape", self._ids, start=1, end=2)
        attention = attention_builder(self._options.form, w, self._a, self._dtype, length)
        one, x = self._seen(length), self._embed(length)
        every = self._for_all(one, length)
        for layer in range(self._a.layers):
            last = template and layer == self._a.layers - 1
            x = self._block(x, layer, attention, one if last else every, last)
        logits = self._classifier(x) if template else self._language_head(x)
        return w.model([self._ids, self._lengths], logits, OPSET[self._options.form])

    def _seen(self, length: ir.Value) -> ir.Value:
        """A row's real positions, bool [B 1 1 L]; the first is one always, for a server's warm-up may send length 0."""
        w = self._w
        every = w.op("Range", w.constant(0), w.op("Squeeze", length), w.constant(1))
        ends = w.op("Max", w.cast(self._lengths, ir.DataType.INT64), w.constant(1))
        return w.op("Less", every, w.op("Unsqueeze", ends, w.constant([1, 2])))

    def _for_all(self, seen: ir.Value, length: ir.Value) -> ir.Value:
        """[B 1 1 L] -> [B 1 L L]: ONNX Runtime's Attention wants a row of the mask for each query."""
        one = self._w.constant([1])
        return self._w.op("Expand", seen, self._w.op("Concat", one, one, length, one, axis=0))

    def _embed(self, length: ir.Value) -> ir.Value:
        w, own = self._w, self._params["embed"]
        words = w.op("Gather", self._weight("embed", own["embedding"], self._stream), self._ids)
        shape = (self._a.positions, self._a.hidden)
        table = self._weight_of(
            "positions", shape, lambda: np.asarray(own["positions"]) + np.asarray(own["types"])[:1], self._stream
        )
        places = w.op("Slice", table, w.constant([0]), length, w.constant([0]))
        x = w.op("Add", words, places)
        return self._layer_norm(x, "embed_norm", lambda part: lambda: own["norm"][part], self._stream, "embedded")

    def _block(self, x: ir.Value, layer: int, attention: AttentionBuilder, seen: ir.Value, last: bool) -> ir.Value:
        """The residual stream after a layer [B L D]; of the last before a classifier its first position alone."""
        w, a, blocks = self._w, self._a, self._params["blocks"]
        with w.scope(f"block_{layer}"):
            own = self._first(x) if last else x
            q, k, v = (self._project(y, part, layer) for y, part in zip((own, x, x), PROJECTIONS, strict=True))
            out, down = blocks["attention"]["out"], blocks["mlp"]["down"]
            mixed = attention.seeing(q, k, v, seen)
            product = self._product(mixed, "out", layer_of(out["kernel"], layer), (a.hidden, a.hidden))
            own = self._norm(self._sum(own, product, self._bias("out", out, layer)), "attention_norm", layer)
            product = self._mlp(self._narrow(own), layer, a.feed_forward)
            summed = self._sum(own, product, self._bias("down", down, layer))
            return self._norm(summed, "mlp_norm", layer, name="residual")

    def _first(self, x: ir.Value) -> ir.Value:
        """[B L D] -> [B 1 D], of [CLS]."""
        return self._w.op("Slice", x, *(self._w.constant([i]) for i in (0, 1, 1)))

    def _bias(self, name: str, own: GraphParams, layer: int) -> ir.Value:
        return self._weight_of(f"{name}/bias", (self._a.hidden,), layer_of(own["bias"], layer), self._stream)

    def _project(self, x: ir.Value, part: str, layer: int) -> ir.Value:
        """Queries, keys or values [B Q (H K)]; queries divided by the root of K."""
        own = self._params["blocks"]["attention"][PROJECTIONS[part]]
        scale = np.float32(self._a.head_dim**-0.5 if part == "q" else 1)

        def scaled(leaf: str) -> ArrayFactory:
            return lambda: np.asarray(own[leaf][layer]) * scale

        shape = (self._a.hidden, self._a.hidden)
        return self._linear(self._narrow(x), part, shape, scaled("kernel"), scaled("bias"))

    def _classifier(self, x: ir.Value) -> ir.Value:
        """[B 1 D] -> logits float32 [B S], by way of the pooler."""
        w, pooler = self._w, self._params["pooler"]
        x = w.op("Squeeze", w.cast(x, TYPES["fp32"]), w.constant([1]))
        pooled = w.op("MatMul", x, self._weight("pooler", pooler["kernel"], "fp32"))
        pooled = w.op("Tanh", w.op("Add", pooled, self._weight("pooler/bias", pooler["bias"], "fp32")))
        return self._slots(pooled, np.asarray(self._params["head"]["bias"]))

    def _language_head(self, x: ir.Value) -> ir.Value:
        """[B L D] -> logits float32 [B L V]."""
        w, own = self._w, self._params["head"]
        x = w.op("MatMul", w.cast(x, TYPES["fp32"]), self._weight("transform", own["transform"]["kernel"], "fp32"))
        x = w.op("Gelu", w.op("Add", x, self._weight("transform/bias", own["transform"]["bias"], "fp32")))
        x = self._layer_norm(x, "head_norm", lambda part: lambda: own["norm"][part], "fp32")
        table = self._weight("head", np.asarray(self._params["embed"]["embedding"]).T, "fp32")
        logits = w.op("Add", w.op("MatMul", x, table), self._weight("head/bias", own["bias"], "fp32"), name="logits")
        return self._logits(logits, ["batch", "length", self._a.vocabulary])
