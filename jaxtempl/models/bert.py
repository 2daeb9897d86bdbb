"""BERT (Devlin et al., 2018) in Flax NNX, with a head that fills in masked tokens or a template head.

Dims: B batch, L length, Q queries (L, or 1), D hidden, H heads, K head_dim (D = H K), F feed-forward, N layers,
V vocabulary, S slots, M masked places of a row.

Every position sees every real one. Layers are normalised after their sums, not before. There is no dropout: GPT-NeoX
has none here either, so that what is compared is the two models.
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

INIT = nnx.initializers.normal(0.02)  # BERT's own initializer_range


class BertEmbedding(nnx.Module):
    """Token, position and the first token type, added and normalised."""

    def __init__(self, a: BertArchitecture, dtype: Any, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Param(INIT(rngs.params(), (a.vocabulary, a.hidden), jnp.float32))
        self.positions = nnx.Param(INIT(rngs.params(), (a.positions, a.hidden), jnp.float32))
        self.types = nnx.Param(INIT(rngs.params(), (a.types, a.hidden), jnp.float32))
        self.norm = layer_norm(a, dtype, rngs)
        self.dtype = dtype

    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """What enters the first block."""
        found = collectives.embedding_lookup(self.embedding[...], tokens)
        found += (self.positions[: tokens.shape[1]] + self.types[:1])[None]
        return self.norm(found.astype(self.dtype))


class BertAttention(nnx.Module):
    """Self-attention to all real positions."""

    def __init__(self, a: BertArchitecture, dtype: Any, rngs: nnx.Rngs) -> None:
        shape = (a.heads, a.head_dim)
        self.query, self.key, self.value = (ColumnParallel(a.hidden, shape, INIT, dtype, rngs) for _ in range(3))
        self.out = RowParallel(shape, a.hidden, INIT, dtype, rngs)

    def __call__(
        self, x: Float[Array, "B L D"], allowed: Bool[Array, "#B #L L"], queries: int
    ) -> Float[Array, "B Q D"]:
        """Output at the first so many positions."""
        q, k, v = self.query(x[:, :queries]), self.key(x), self.value(x)
        return self.out(attention.full(q, k, v, allowed[:, :queries]))


class BertBlock(nnx.Module):
    """One layer: attention and MLP, each added to what it read and normalised."""

    def __init__(self, a: BertArchitecture, dtype: Any, rngs: nnx.Rngs) -> None:
        self.attention = BertAttention(a, dtype, rngs)
        self.attention_norm = layer_norm(a, dtype, rngs)
        self.mlp = MLP(a.hidden, a.feed_forward, INIT, INIT, dtype, rngs)
        self.mlp_norm = layer_norm(a, dtype, rngs)

    def __call__(
        self, x: Float[Array, "B L D"], allowed: Bool[Array, "#B #L L"], queries: int
    ) -> Float[Array, "B Q D"]:
        """What leaves this layer, at the first so many positions."""
        x = self.attention_norm(x[:, :queries] + self.attention(x, allowed, queries))
        return self.mlp_norm(x + self.mlp(x))


class MaskedLMHead(nnx.Module):
    """What masked tokens are told by: a layer of its own, then the table of the embedding, with a bias."""

    def __init__(self, a: BertArchitecture, dtype: Any, rngs: nnx.Rngs) -> None:
        self.transform = nnx.Linear(a.hidden, a.hidden, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(a, dtype, rngs)
        self.bias = nnx.Param(jnp.zeros(a.vocabulary))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """What the embedding's table is multiplied by."""
        return self.norm(jax.nn.gelu(self.transform(x), approximate=False))


class Bert(nnx.Module):
    """Embedding, stacked blocks, and one head.

    Args:
        a: the architecture.
        slots: of a template head, behind the pooler; None makes the head of a masked language model.
        dtype: of the computation; parameters are always float32.
        remat: what the backward pass computes again.
        platform: what it is to run on, as JAX names that.
        rngs: source of the initial weights.
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
            self.pooler = nnx.Linear(a.hidden, a.hidden, kernel_init=INIT, dtype=dtype, rngs=rngs)
            self.head = nnx.Linear(a.hidden, slots, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.architecture, self.slots, self.dtype = a, slots, dtype
        self.remat: Remat = remat
        self.platform = platform

    def residual(
        self, tokens: Int[Array, "B L"], allowed: Bool[Array, "#B #L L"]
    ) -> tuple[Float[Array, "B L D"], Float[Array, "N B L D"]]:
        """What leaves the last block, and what leaves every block.

        Args:
            tokens: rows that begin with [CLS].
            allowed: the positions that each position sees, or that all of a row see.
        """
        return self._scan(*scan.split_stack(self.blocks), tokens, allowed)

    def _scan(self, graphdef: Any, stacked: Any, tokens: Array, allowed: Array) -> Any:
        def apply(block: BertBlock, x: Array) -> Array:
            return block(x, allowed, x.shape[1])

        return scan.scan_blocks(graphdef, stacked, self.embed(tokens), apply, self.dtype, self.remat)

    def hidden(self, tokens: Int[Array, "B L"], allowed: Bool[Array, "#B #L L"]) -> Float[Array, "B L D"]:
        """What leaves the last block."""
        return self.residual(tokens, allowed)[0]

    def __call__(self, tokens: Int[Array, "B L"], lengths: Int[Array, " B"]) -> Float[Array, "B L V"]:
        """Logits of the token at every position, float32; rows are padded on the right."""
        told = self.head(self.hidden(tokens, attention.padding_mask(tokens.shape[1], lengths)))
        table = self.embed.embedding[...].astype(told.dtype)
        own = jnp.matmul(collectives.copy_to_tensor_parallel(told), table.T, preferred_element_type=jnp.float32)
        whole = own if table.shape[0] == self.architecture.vocabulary else collectives.all_gather_columns(own)
        return whole + self.head.bias[None, None]

    def classify(self, tokens: Int[Array, "B L"], lengths: Int[Array, " B"]) -> Float[Array, "B S"]:
        """Logits of the templates, float32, from [CLS] through the pooler, as BertForSequenceClassification has it.

        The last block needs keys and values of all positions but everything else of that one alone.
        """
        graphdef, stacked = scan.split_stack(self.blocks)
        allowed = attention.padding_mask(tokens.shape[1], lengths)
        x, _ = self._scan(graphdef, jax.tree.map(lambda leaf: leaf[:-1], stacked), tokens, allowed)
        last = scan.merge_block(graphdef, jax.tree.map(lambda leaf: leaf[-1], stacked), self.dtype)
        pooled = jnp.tanh(self.pooler(last(x, allowed, 1)[:, 0]))
        logits = layers.head_columns(pooled, self.head.kernel[...], self.head.out_features)
        return logits + self.head.bias[None]


def attention_mask(segments: Integer[Array, "B L"], apart: bool) -> Bool[Array, "#B #L L"]:
    """What positions of packed rows see: all that is real (segment 0 is padding), or `apart` their own document."""
    real = (segments > 0)[:, None]
    return real & (segments[:, :, None] == segments[:, None]) if apart else real


def layer_norm(a: BertArchitecture, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with scale and bias; flax takes its statistics in float32 whatever `dtype` is."""
    return nnx.LayerNorm(a.hidden, epsilon=a.norm_eps, dtype=dtype, rngs=rngs)
