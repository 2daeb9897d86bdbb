"""Hugging Face's name of each tensor and the leaf that it belongs to: one table a family, used both ways.

Dims: D hidden, H heads, K head_dim.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from jaxtempl.specs.architecture import Family

Head = Literal["lm", "template"]


class Transform(NamedTuple):
    """A conversion between a stored array and a leaf, given H.

    Only methods of the arrays are used, so that shapes can be traced through it.
    """

    name: str
    read: Callable[[Any, int], Any]
    write: Callable[[Any, int], Any]


SAME = Transform("same", lambda x, _: x, lambda x, _: x)
LINEAR = Transform("linear", lambda x, _: x.T, lambda x, _: x.T)
FUSED = Transform(  # [(H 3 K) D] <-> [D H 3 K]
    "fused query, key, value",
    lambda x, h: x.T.reshape(x.shape[-1], h, 3, -1),
    lambda x, _: x.reshape(x.shape[0], -1).T,
)
SPLIT_HEADS = Transform(  # [(H K) D] <-> [D H K]
    "split heads", lambda x, h: x.T.reshape(x.shape[-1], h, -1), lambda x, _: x.reshape(x.shape[0], -1).T
)
MERGE_HEADS = Transform(  # [D (H K)] <-> [H K D]
    "merge heads", lambda x, h: x.T.reshape(h, -1, x.shape[0]), lambda x, _: x.reshape(-1, x.shape[-1]).T
)


class TensorRule(NamedTuple):
    """One kind of tensor; `{layer}` in the stored name stands for N tensors, stacked along the leaf's first axis."""

    stored: str
    path: str
    transform: Transform

    @property
    def part(self) -> str:
        """Part of the parameter tree."""
        return self.path.partition("/")[0]


class TensorTable(NamedTuple):
    """The mapping of one family.

    Attributes:
        name: Name of the family in messages.
        prefix: Prefix of all stored names except the heads'; absent in a folder of the base model alone.
        rules: The whole mapping.
        heads: Head that a stored tensor belongs to; these names have no prefix.
        classifier: Tensor whose first axis is the slots.
        renamed: Parts of older or newer tensor names, and the names used here.
        optional: Part of the tree that folders may lack and models of one head do not have.
        dropped: Tensors that the model computes, has elsewhere, or does not need.
    """

    name: str
    prefix: str
    rules: tuple[TensorRule, ...]
    heads: Mapping[str, Head]
    classifier: str
    renamed: Mapping[str, str]
    optional: str
    dropped: tuple[str, ...]


NEOX = TensorTable(
    name="GPT-NeoX",
    prefix="gpt_neox.",
    rules=(
        TensorRule("embed_in.weight", "embed/embedding", SAME),
        TensorRule("layers.{layer}.input_layernorm.weight", "blocks/attention_norm/scale", SAME),
        TensorRule("layers.{layer}.input_layernorm.bias", "blocks/attention_norm/bias", SAME),
        TensorRule("layers.{layer}.attention.query_key_value.weight", "blocks/attention/query_key_value/kernel", FUSED),
        TensorRule("layers.{layer}.attention.query_key_value.bias", "blocks/attention/query_key_value/bias", SAME),
        TensorRule("layers.{layer}.attention.dense.weight", "blocks/attention/out/kernel", MERGE_HEADS),
        TensorRule("layers.{layer}.attention.dense.bias", "blocks/attention/out/bias", SAME),
        TensorRule("layers.{layer}.post_attention_layernorm.weight", "blocks/mlp_norm/scale", SAME),
        TensorRule("layers.{layer}.post_attention_layernorm.bias", "blocks/mlp_norm/bias", SAME),
        TensorRule("layers.{layer}.mlp.dense_h_to_4h.weight", "blocks/mlp/up/kernel", LINEAR),
        TensorRule("layers.{layer}.mlp.dense_h_to_4h.bias", "blocks/mlp/up/bias", SAME),
        TensorRule("layers.{layer}.mlp.dense_4h_to_h.weight", "blocks/mlp/down/kernel", LINEAR),
        TensorRule("layers.{layer}.mlp.dense_4h_to_h.bias", "blocks/mlp/down/bias", SAME),
        TensorRule("final_layer_norm.weight", "norm/scale", SAME),
        TensorRule("final_layer_norm.bias", "norm/bias", SAME),
        TensorRule("embed_out.weight", "head/kernel", LINEAR),
        TensorRule("score.weight", "head/kernel", LINEAR),
    ),
    heads={"embed_out.weight": "lm", "score.weight": "template"},
    classifier="score.weight",
    renamed={"lm_head.": "embed_out."},  # transformers 5's name, and that of published files
    optional="",
    dropped=(  # buffers that older transformers stored; the model computes them
        "rotary_emb.inv_freq",
        "layers.{layer}.attention.rotary_emb.inv_freq",
        "layers.{layer}.attention.bias",
        "layers.{layer}.attention.masked_bias",
    ),
)

_LAYER = "encoder.layer.{layer}."
BERT = TensorTable(
    name="BERT",
    prefix="bert.",
    rules=(
        TensorRule("embeddings.word_embeddings.weight", "embed/embedding", SAME),
        TensorRule("embeddings.position_embeddings.weight", "embed/positions", SAME),
        TensorRule("embeddings.token_type_embeddings.weight", "embed/types", SAME),
        TensorRule("embeddings.LayerNorm.weight", "embed/norm/scale", SAME),
        TensorRule("embeddings.LayerNorm.bias", "embed/norm/bias", SAME),
        TensorRule(f"{_LAYER}attention.self.query.weight", "blocks/attention/query/kernel", SPLIT_HEADS),
        TensorRule(f"{_LAYER}attention.self.query.bias", "blocks/attention/query/bias", SAME),
        TensorRule(f"{_LAYER}attention.self.key.weight", "blocks/attention/key/kernel", SPLIT_HEADS),
        TensorRule(f"{_LAYER}attention.self.key.bias", "blocks/attention/key/bias", SAME),
        TensorRule(f"{_LAYER}attention.self.value.weight", "blocks/attention/value/kernel", SPLIT_HEADS),
        TensorRule(f"{_LAYER}attention.self.value.bias", "blocks/attention/value/bias", SAME),
        TensorRule(f"{_LAYER}attention.output.dense.weight", "blocks/attention/out/kernel", MERGE_HEADS),
        TensorRule(f"{_LAYER}attention.output.dense.bias", "blocks/attention/out/bias", SAME),
        TensorRule(f"{_LAYER}attention.output.LayerNorm.weight", "blocks/attention_norm/scale", SAME),
        TensorRule(f"{_LAYER}attention.output.LayerNorm.bias", "blocks/attention_norm/bias", SAME),
        TensorRule(f"{_LAYER}intermediate.dense.weight", "blocks/mlp/up/kernel", LINEAR),
        TensorRule(f"{_LAYER}intermediate.dense.bias", "blocks/mlp/up/bias", SAME),
        TensorRule(f"{_LAYER}output.dense.weight", "blocks/mlp/down/kernel", LINEAR),
        TensorRule(f"{_LAYER}output.dense.bias", "blocks/mlp/down/bias", SAME),
        TensorRule(f"{_LAYER}output.LayerNorm.weight", "blocks/mlp_norm/scale", SAME),
        TensorRule(f"{_LAYER}output.LayerNorm.bias", "blocks/mlp_norm/bias", SAME),
        TensorRule("pooler.dense.weight", "pooler/kernel", LINEAR),
        TensorRule("pooler.dense.bias", "pooler/bias", SAME),
        TensorRule("cls.predictions.transform.dense.weight", "head/transform/kernel", LINEAR),
        TensorRule("cls.predictions.transform.dense.bias", "head/transform/bias", SAME),
        TensorRule("cls.predictions.transform.LayerNorm.weight", "head/norm/scale", SAME),
        TensorRule("cls.predictions.transform.LayerNorm.bias", "head/norm/bias", SAME),
        TensorRule("cls.predictions.bias", "head/bias", SAME),
        TensorRule("classifier.weight", "head/kernel", LINEAR),
        TensorRule("classifier.bias", "head/bias", SAME),
    ),
    heads={
        "cls.predictions.transform.dense.weight": "lm",
        "cls.predictions.transform.dense.bias": "lm",
        "cls.predictions.transform.LayerNorm.weight": "lm",
        "cls.predictions.transform.LayerNorm.bias": "lm",
        "cls.predictions.bias": "lm",
        "classifier.weight": "template",
        "classifier.bias": "template",
    },
    classifier="classifier.weight",
    renamed={
        "LayerNorm.gamma": "LayerNorm.weight",
        "LayerNorm.beta": "LayerNorm.bias",
    },  # names of the first files
    optional="pooler",
    dropped=(
        "embeddings.position_ids",
        "cls.predictions.decoder.weight",  # the embedding again
        "cls.predictions.decoder.bias",
        "cls.seq_relationship.weight",  # next-sentence prediction
        "cls.seq_relationship.bias",
    ),
)

TABLES: dict[Family, TensorTable] = {"gpt_neox": NEOX, "bert": BERT}
