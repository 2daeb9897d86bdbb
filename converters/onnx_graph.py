"""A model's parameters -> one ONNX graph of standard operators: no exporter, no tracing.

What need not be done at each call is done here once: each head's [q|k|v] columns are taken apart, 1/sqrt(K) is
multiplied into q, rotary angles are tables, and the biases of attention and MLP are one where both are added at once.

Dims: B batch, L length, D hidden, H heads, K head_dim, F feed-forward, N layers, V vocabulary, S slots.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32

from converters import onnx_attention
from converters.onnx_attention import OPSET, PARTS, Form, Kernel
from converters.onnx_writer import TYPES, Dtype, Writer
from jaxtempl.models.config_json import Head
from jaxtempl.models.neox import Architecture

Params = Mapping[str, Any]  # nested dicts of float32 arrays, as models.neox has them
UNUSED = -1e4  # logit of a slot that has no template


@dataclasses.dataclass(frozen=True)
class Options:
    """How a graph is written.

    Attributes:
        head: `template` gives logits [B S] at each row's last token, `lm` logits [B L V].
        dtype: of weights and activations; the last LayerNorm and the head are float32 always.
        wide_residual: keep the residual stream in float32 where `dtype` is fp16.
        form: of attention; `parted` is for ONNX Runtime on a CPU.
        slots: columns of a template head; those beyond the model's own are padding.
    """

    head: Head
    dtype: Dtype = "fp32"
    wide_residual: bool = False
    form: Form = "fused"
    slots: int = 0


def build(params: Params, a: Architecture, options: Options) -> ir.Model:
    """The model; its weights are made one by one when it is stored.

    Inputs are `input_ids` int32 [B L], padded on the right, and for a template head `lengths` int32 [B 1]; the output
    is `logits` float32. Value `block_I/residual` is the residual stream after block I, `embedded` what enters block 0.
    """
    return _Model(params, a, options).model()


class _Model:
    """One graph being written."""

    def __init__(self, params: Params, a: Architecture, options: Options) -> None:
        self._params, self._a, self._options = params, a, options
        self._dtype: Dtype = options.dtype
        self._stream: Dtype = "fp32" if options.wide_residual else options.dtype
        self._w = Writer()
        self._ids = _input("input_ids", ["batch", "length"])
        self._lengths = _input("lengths", ["batch", 1])

    def model(self) -> ir.Model:
        w, template = self._w, self._options.head == "template"
        own = w.op("Shape", self._ids, start=1, end=2)
        ids, length = self._padded(own) if self._options.form == "parted" else (self._ids, own)
        shape = w.op("Shape", ids)
        every = w.op("Range", w.constant(0), w.op("Squeeze", length), w.constant(1))
        positions = w.op("Expand", every, shape)  # [B L]
        kernel = onnx_attention.kernel(self._options.form, w, self._a, self._dtype, length)
        x = self._embed(ids)
        for layer in range(self._a.layers - template):
            x = self._block(x, layer, kernel, positions)
        if template:
            x = self._last(x, kernel, positions, every, own)
        elif self._options.form == "parted":
            x = w.op("Slice", x, w.constant([0]), own, w.constant([1]))
        inputs = [self._ids, self._lengths] if template else [self._ids]
        return w.model(inputs, self._head(x), OPSET[self._options.form])

    def _padded(self, own: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The tokens and their length, at least one for each part of the queries; none before sees what is added."""
        w = self._w
        length = w.op("Max", own, w.constant([PARTS]))
        missing = w.op("Concat", w.constant([0, 0, 0]), w.op("Sub", length, own), axis=0)
        return w.op("Pad", self._ids, missing), length

    def _embed(self, ids: ir.Value) -> ir.Value:
        table = self._weight("embed", self._params["embed"]["embedding"], self._stream)
        return self._w.op("Gather", table, ids, name="embedded")

    def _block(self, x: ir.Value, layer: int, kernel: Kernel, positions: ir.Value) -> ir.Value:
        """The residual stream [B L D] after a layer."""
        with self._w.scope(f"block_{layer}"):
            q, k, v = self._project(self._norm(x, "attention_norm", layer), "qkv", layer)
            q, k = kernel.rotate(q, positions), kernel.rotate(k, positions)
            return self._rest(x, kernel.causal(q, k, v), layer)

    def _last(self, x: ir.Value, kernel: Kernel, positions: ir.Value, every: ir.Value, length: ir.Value) -> ir.Value:
        """The residual stream [B 1 D] after the last layer, at each row's last token alone.

        Keys and values are of all tokens; queries, output and MLP are of that one, which spares 2.6 to 3.5 % of all
        FLOPs.
        """
        w, layer = self._w, self._a.layers - 1
        with w.scope(f"block_{layer}"):
            at = self._last_place(length)  # [B 1]
            normed = self._norm(x, "attention_norm", layer)
            (q,) = self._project(self._pick(normed, at), "q", layer)
            k, v = self._project(normed, "kv", layer)
            q, k = kernel.rotate(q, at), kernel.rotate(k, positions)
            seen = w.op("LessOrEqual", every, w.op("Unsqueeze", at, w.constant([1, 2])))  # [B 1 1 L]
            return self._rest(self._pick(x, at), kernel.single(q, k, v, seen), layer)

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

    def _columns(self, part: str, layer: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
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
        out = self._product(attended, "out", _layer(blocks["attention"]["out"]["kernel"], layer), (a.hidden, a.hidden))
        biases = [_layer(blocks[m][p]["bias"], layer) for m, p in (("attention", "out"), ("mlp", "down"))]
        if a.parallel_residual:
            down = self._mlp(self._norm(x, "mlp_norm", layer), layer)
            bias = self._weight_of("bias", (a.hidden,), lambda: biases[0]() + biases[1](), self._stream)
            return self._sum(x, out, down, bias, name="residual")
        x = self._sum(x, out, self._weight_of("out/bias", (a.hidden,), biases[0], self._stream))
        down = self._mlp(self._norm(x, "mlp_norm", layer), layer)
        return self._sum(x, down, self._weight_of("down/bias", (a.hidden,), biases[1], self._stream), name="residual")

    def _mlp(self, x: ir.Value, layer: int) -> ir.Value:
        """[B Q D] -> [B Q D], without the second bias."""
        up, down = (self._params["blocks"]["mlp"][part] for part in ("up", "down"))
        narrow, wide = self._a.hidden, self._a.feed_forward
        x = self._linear(x, "up", (narrow, wide), _layer(up["kernel"], layer), _layer(up["bias"], layer))
        return self._product(self._w.op("Gelu", x), "down", _layer(down["kernel"], layer), (wide, narrow))

    def _head(self, x: ir.Value) -> ir.Value:
        """[B Q D] -> logits: float32 [B S] or [B L V]."""
        w, kernel = self._w, self._params["head"]["kernel"]
        x = self._layer_norm(w.cast(x, TYPES["fp32"]), "norm", lambda part: lambda: self._params["norm"][part], "fp32")
        if self._options.head == "lm":
            return self._logits(
                w.op("MatMul", x, self._weight("head", kernel, "fp32"), name="logits"), "length", kernel
            )
        return self._slots(w.op("Squeeze", x, w.constant([1])))

    def _slots(self, x: ir.Value) -> ir.Value:
        """[B D] -> [B S], with an unlikely logit in slots that the model does not have."""
        w, own = self._w, np.asarray(self._params["head"]["kernel"])
        count = own.shape[1]
        spare = max(self._options.slots - count, 0)
        wide = np.pad(own, ((0, 0), (0, spare)))
        logits = w.op("MatMul", x, self._weight("head", wide, "fp32"), name="" if self._options.slots else "logits")
        if self._options.slots:
            bias = np.pad(np.zeros(count, np.float32), (0, spare), constant_values=UNUSED)
            logits = w.op("Add", logits, self._weight("head/unused", bias, "fp32"), name="logits")
        return self._logits(logits, None, wide)

    def _logits(self, value: ir.Value, length: str | None, kernel: Any) -> ir.Value:
        value.dtype = TYPES["fp32"]
        value.shape = ir.Shape([d for d in ("batch", length, kernel.shape[1]) if d is not None])
        return value

    def _norm(self, x: ir.Value, name: str, layer: int) -> ir.Value:
        """LayerNorm of the residual stream, in the type of the computation."""
        own = self._params["blocks"][name]
        normed = self._layer_norm(x, name, lambda part: _layer(own[part], layer), self._stream)
        return normed if self._stream == self._dtype else self._w.cast(normed, TYPES[self._dtype])

    def _layer_norm(self, x: ir.Value, name: str, make: Callable[[str], Callable[[], Any]], dtype: Dtype) -> ir.Value:
        scale, bias = (self._weight_of(f"{name}/{p}", (self._a.hidden,), make(p), dtype) for p in ("scale", "bias"))
        return self._w.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=self._a.norm_eps)

    def _linear(
        self, x: ir.Value, name: str, shape: tuple[int, int], kernel: Callable[[], Any], bias: Callable[[], Any]
    ) -> ir.Value:
        product = self._product(x, name, kernel, shape)
        return self._w.op("Add", product, self._weight_of(f"{name}/bias", shape[1:], bias, self._dtype))

    def _product(self, x: ir.Value, name: str, kernel: Callable[[], Any], shape: tuple[int, int]) -> ir.Value:
        return self._w.op("MatMul", x, self._weight_of(f"{name}/kernel", shape, kernel, self._dtype), name=name)

    def _sum(self, x: ir.Value, *others: ir.Value, name: str = "") -> ir.Value:
        """Everything added to the residual stream, in its type; the last of `others` is a bias of that type."""
        *products, bias = others
        if self._stream != self._dtype:
            products = [self._w.cast(product, TYPES[self._stream]) for product in products]
        total = self._w.op("Add", products[0], bias)
        for product in products[1:]:
            total = self._w.op("Add", total, product)
        return self._w.op("Add", x, total, name=name)

    def _weight(self, name: str, array: Any, dtype: Dtype) -> ir.Value:
        return self._weight_of(name, tuple(array.shape), lambda: array, dtype)

    def _weight_of(self, name: str, shape: tuple[int, ...], make: Callable[[], Any], dtype: Dtype) -> ir.Value:
        return self._w.weight(name, shape, dtype, lambda: np.asarray(make(), np.float32).reshape(shape))


def _layer(stacked: Any, layer: int) -> Callable[[], Float32[np.ndarray, "..."]]:
    """One layer of a stacked leaf, cut out when asked for."""
    return lambda: np.asarray(stacked[layer])


def _input(name: str, dims: list[str | int]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(dims))
