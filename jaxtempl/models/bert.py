"""BERT (Devlin et al., 2018) in Flax NNX, with a masked-language-model head or a template head.

Dims: B batch, L length, Q queries (L, or 1), D hidden, H heads, K head_dim (D = H K), F feed-forward, N layers,
V vocabulary, S slots.

Every position attends to every real one. LayerNorm follows each sum (post-LN). There is no dropout, as in our GPT-NeoX,
so that a comparison is of the two models alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxtempl.models import attention, layers, scan
from jaxtempl.models.layers import MLP, ColumnParallel, RowParallel
from jaxtempl.models.scan import Remat
from jaxtempl.parallel import collectives
from jaxtempl.specs.architecture import BertArchitecture

INIT = nnx.initializers.normal(0.02)  # BERT's initializer_range


class BertEmbedding(nnx.Module):
    """The normalised sum of token, position and first token-type embedding."""

    def __init__(self, a: BertArchitecture, dtype: Any, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Param(INIT(rngs.params(), (a.vocabulary, a.hidden), jnp.float32))
        self.positions = nnx.Param(INIT(rngs.params(), (a.positions, a.hidden), jnp.float32))
        self.types = nnx.Param(INIT(rngs.params(), (a.types, a.hidden), jnp.float32))
        self.norm = layer_norm(a, dtype, rngs)
        self.dtype = dtype

    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Return the input of the first block."""
        embedded = collectives.embedding_lookup(self.embedding[...], tokens)
        embedded += (self.positions[: tokens.shape[1]] + self.types[:1])[None]
        return self.norm(embedded.astype(self.dtype))


class BertAttention(nnx.Module):
    """Self-attention to all real positions."""

    def __init__(self, a: BertArchitecture, dtype: Any, rngs: nnx.Rngs) -> None:
        shape = (a.heads, a.head_dim)
        self.query, self.key, self.value = (ColumnParallel(a.hidden, shape, INIT, dtype, rngs) for _ in range(3))
        self.out = RowParallel(shape, a.hidden, INIT, dtype, rngs)

    def __call__(
        self, x: Float[Array, "B L D"], allowed: Bool[Array, "#B #L L"], queries: int
    ) -> Float[Array, "B Q D"]:
        """Return the output at the first `queries` positions."""
        q, k, v = self.query(x[:, :queries]), self.key(x), self.value(x)
        return self.out(attention.full(q, k, v, allowed[:, :queries]))


class BertBlock(nnx.Module):
    """One layer: attention and MLP, each followed by the residual sum and LayerNorm."""

    def __init__(self, a: BertArchitecture, dtype: Any, rngs: nnx.Rngs) -> None:
        self.attention = BertAttention(a, dtype, rngs)
        self.attention_norm = layer_norm(a, dtype, rngs)
        self.mlp = MLP(a.hidden, a.feed_forward, INIT, INIT, dtype, rngs)
        self.mlp_norm = layer_norm(a, dtype, rngs)

    def __call__(
        self, x: Float[Array, "B L D"], allowed: Bool[Array, "#B #L L"], queries: int
    ) -> Float[Array, "B Q D"]:
        """Return the layer's output at the first `queries` positions."""
        x = self.attention_norm(x[:, :queries] + self.attention(x, allowed, queries))
        return self.mlp_norm(x + self.mlp(x))


class MaskedLMHead(nnx.Module):
    """The head that predicts masked tokens: a dense layer and LayerNorm before the tied embedding, and its bias."""

    def __init__(self, a: BertArchitecture, dtype: Any, rngs: nnx.Rngs) -> None:
        self.transform = nnx.Linear(a.hidden, a.hidden, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(a, dtype, rngs)
        self.bias = nnx.Param(jnp.zeros(a.vocabulary))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Return what the embedding table is multiplied by."""
        return self.norm(jax.nn.gelu(self.transform(x), approximate=False))


class Bert(nnx.Module):
    """Embedding, stacked blocks, and one head.

    Args:
        a: Architecture.
        slots: Columns of a template head; None makes a masked-language-model head.
        dtype: Type of the computation; parameters are always float32.
        remat: What the backward pass recomputes.
        platform: JAX's name of the platform that the model runs on.
        rngs: Source of the initial weights.
    """

    def __init__(
        self,
        a: BertArchitecture,
        slots: int | None = None,
        dtype: Any = jnp.float32,
        remat: Remat = "none",
        platform: str = "cpu",
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.embed = BertEmbedding(a, dtype, rngs)
        blocks = nnx.vmap(lambda key: BertBlock(a, dtype, nnx.Rngs(key)))
        self.blocks = blocks(jax.random.split(rngs.params(), a.layers))  # every leaf [N ...]
        self.head: Any  # one of two kinds
        if slots is None:
            self.head = MaskedLMHead(a, dtype, rngs)
        else:
            if a.pooling == "first":
                self.pooler = nnx.Linear(a.hidden, a.hidden, kernel_init=INIT, dtype=dtype, rngs=rngs)
            self.head = nnx.Linear(a.hidden, slots, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.architecture, self.slots, self.dtype = a, slots, dtype
        self.remat: Remat = remat
        self.platform = platform

    def residual(
        self, tokens: Int[Array, "B L"], allowed: Bool[Array, "#B #L L"]
    ) -> tuple[Float[Array, "B L D"], Float[Array, "N B L D"]]:
        """Return the output of the last block, and of every block.

        Args:
            tokens: Rows that begin with [CLS].
            allowed: Positions that each position attends to, or that all of a row attend to.
        """
        return self._scan(*scan.split_stack(self.blocks), tokens, allowed)

    def _scan(self, graphdef: Any, stacked: Any, tokens: Array, allowed: Array) -> Any:
        def apply(block: BertBlock, x: Array) -> Array:
            return block(x, allowed, x.shape[1])

        return scan.scan_blocks(graphdef, stacked, self.embed(tokens), apply, self.dtype, self.remat)

    def hidden(self, tokens: Int[Array, "B L"], allowed: Bool[Array, "#B #L L"]) -> Float[Array, "B L D"]:
        """Return the output of the last block."""
        return self.residual(tokens, allowed)[0]

    def __call__(self, tokens: Int[Array, "B L"], lengths: Int[Array, " B"]) -> Float[Array, "B L V"]:
        """Return the logits of the token at every position, float32; rows are padded on the right."""
        hidden = self.head(self.hidden(tokens, attention.padding_mask(tokens.shape[1], lengths)))
        table = self.embed.embedding[...].astype(hidden.dtype)
        local = jnp.matmul(collectives.copy_to_tensor_parallel(hidden), table.T, preferred_element_type=jnp.float32)
        logits = local if table.shape[0] == self.architecture.vocabulary else collectives.all_gather_columns(local)
        return logits + self.head.bias[None, None]

    def classify(self, tokens: Int[Array, "B L"], lengths: Int[Array, " B"]) -> Float[Array, "B S"]:
        """Return template logits, float32.

        They come from [CLS] through the pooler, as in BertForSequenceClassification, or from the mean of the real
        positions, as sentence-transformers embeds a text (Reimers and Gurevych, 2019).
        """
        allowed = attention.padding_mask(tokens.shape[1], lengths)
        pooled = self._mean(tokens, allowed) if self.architecture.pooling == "mean" else self._cls(tokens, allowed)
        logits = layers.head_columns(pooled, self.head.kernel[...], self.head.out_features)
        return logits + self.head.bias[None]

    def _mean(self, tokens: Int[Array, "B L"], allowed: Bool[Array, "B 1 L"]) -> Float[Array, "B D"]:
        return layers.mean_of_real(self.hidden(tokens, allowed), allowed[:, 0])

    def _cls(self, tokens: Int[Array, "B L"], allowed: Bool[Array, "B 1 L"]) -> Float[Array, "B D"]:
        """Return the pooled [CLS]; the last block computes keys and values at all positions, the rest at [CLS]."""
        graphdef, stacked = scan.split_stack(self.blocks)
        x, _ = self._scan(graphdef, jax.tree.map(lambda leaf: leaf[:-1], stacked), tokens, allowed)
        last = scan.merge_block(graphdef, jax.tree.map(lambda leaf: leaf[-1], stacked), self.dtype)
        return jnp.tanh(self.pooler(last(x, allowed, 1)[:, 0]))


def attention_mask(segments: Integer[Array, "B L"], mask_documents: bool) -> Bool[Array, "#B #L L"]:
    """Return which positions of packed rows attend to which: to all real ones, or to their own document.

    Segment 0 is padding.
    """
    real = (segments > 0)[:, None]
    return real & (segments[:, :, None] == segments[:, None]) if mask_documents else real


def layer_norm(a: BertArchitecture, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Return a LayerNorm with scale and bias; flax computes its statistics in float32 whatever `dtype` is."""
    return nnx.LayerNorm(a.hidden, epsilon=a.norm_eps, dtype=dtype, rngs=rngs)
