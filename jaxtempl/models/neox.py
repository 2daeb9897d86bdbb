"""GPT-NeoX (Pythia) in Flax NNX, with a language-model head or a template head.

Dims: B batch, L length, D hidden, H heads, K head_dim (D = H K), F feed-forward, N layers, V vocabulary, S slots,
O outputs of the head (V or S).

The blocks are built as one stack by `nnx.vmap` and run by `jax.lax.scan`, so compile time does not grow with N.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxtempl.models import attention, flash_attention, layers, scan
from jaxtempl.models.flash_attention import Kernel
from jaxtempl.models.layers import MLP, ColumnParallel, RowParallel
from jaxtempl.models.scan import Remat
from jaxtempl.parallel import collectives
from jaxtempl.specs.architecture import NeoXArchitecture


class NeoXAttention(nnx.Module):
    """Self-attention with rotary position embeddings."""

    def __init__(self, a: NeoXArchitecture, dtype: Any, kernel: Kernel, rngs: nnx.Rngs) -> None:
        self.query_key_value = ColumnParallel(a.hidden, (a.heads, 3, a.head_dim), small_init(a), dtype, rngs)
        self.out = RowParallel((a.heads, a.head_dim), a.hidden, output_init(a), dtype, rngs)
        self.kernel: Kernel = kernel

    def __call__(
        self,
        x: Float[Array, "B L D"],
        angles: attention.RotaryAngles,
        at: Int[Array, " B"] | None = None,
        documents: Integer[Array, "B L"] | None = None,
        seen: Bool[Array, "B 1 L"] | None = None,
    ) -> Float[Array, "B Q D"]:
        """Return the output at every position (Q = L), or at position `at` alone (Q = 1).

        Attention is causal, and within `documents` if they are given; with `seen`, every position attends to those.
        """
        q, k, v = jnp.moveaxis(self.query_key_value(x), -2, 0)  # each [B L H K]
        q, k = attention.apply_rotary(q, angles), attention.apply_rotary(k, angles)
        if seen is not None:
            return self.out(attention.full(q if at is None else take_position(q, at), k, v, seen))
        if at is None:
            return self.out(flash_attention.causal(self.kernel, q, k, v, documents))
        return self.out(attention.single_query(take_position(q, at), k, v, at))


class NeoXBlock(nnx.Module):
    """One layer: attention and MLP, each behind its own LayerNorm."""

    def __init__(self, a: NeoXArchitecture, dtype: Any, kernel: Kernel, rngs: nnx.Rngs) -> None:
        self.attention_norm = layer_norm(a, dtype, rngs)
        self.attention = NeoXAttention(a, dtype, kernel, rngs)
        self.mlp_norm = layer_norm(a, dtype, rngs)
        self.mlp = MLP(a.hidden, a.feed_forward, small_init(a), output_init(a), dtype, rngs)
        self.parallel_residual = a.parallel_residual

    def __call__(
        self,
        x: Float[Array, "B L D"],
        angles: attention.RotaryAngles,
        at: Int[Array, " B"] | None = None,
        documents: Integer[Array, "B L"] | None = None,
        seen: Bool[Array, "B 1 L"] | None = None,
    ) -> Float[Array, "B Q D"]:
        """Return the residual stream after this layer, at every position (Q = L) or at `at` alone (Q = 1)."""
        attended = self.attention(self.attention_norm(x), angles, at, documents, seen)
        x = x if at is None else take_position(x, at)
        if self.parallel_residual:
            return x + attended + self.mlp(self.mlp_norm(x))
        x = x + attended
        return x + self.mlp(self.mlp_norm(x))


class NeoX(nnx.Module):
    """Embedding, stacked blocks, final LayerNorm and one head without bias.

    Args:
        a: Architecture.
        slots: Columns of a template head; None makes a language-model head of V columns.
        dtype: Type of the computation; parameters are always float32.
        remat: What the backward pass recomputes, a key of `scan.REMAT`.
        platform: JAX's name of the platform that the model runs on; it selects the attention kernel.
        rngs: Source of the initial weights.
    """

    def __init__(
        self,
        a: NeoXArchitecture,
        slots: int | None = None,
        dtype: Any = jnp.float32,
        remat: Remat = "none",
        platform: str = "cpu",
        *,
        rngs: nnx.Rngs,
    ) -> None:
        outputs = a.vocabulary if slots is None else slots
        # float32, because the gradient sums over all occurrences of a token.
        self.embed = nnx.Embed(a.vocabulary, a.hidden, embedding_init=small_init(a), dtype=jnp.float32, rngs=rngs)
        kernel = flash_attention.choose_kernel(platform, a.head_dim, dtype)
        blocks = nnx.vmap(lambda key: NeoXBlock(a, dtype, kernel, nnx.Rngs(key)))
        self.blocks = blocks(jax.random.split(rngs.params(), a.layers))  # every leaf [N ...]
        self.norm = layer_norm(a, dtype, rngs)
        self.head = nnx.Linear(a.hidden, outputs, use_bias=False, kernel_init=small_init(a), dtype=dtype, rngs=rngs)
        self.architecture, self.outputs, self.dtype = a, outputs, dtype
        self.remat: Remat = remat
        self.platform = platform

    def residual(
        self, tokens: Int[Array, "B L"], documents: Integer[Array, "B L"] | None = None
    ) -> tuple[Float[Array, "B L D"], Float[Array, "N B L D"]]:
        """Return the residual stream after the last block, and after every block."""
        return self._scan(*scan.split_stack(self.blocks), tokens, documents)

    def _scan(
        self,
        graphdef: nnx.GraphDef[NeoXBlock],
        stacked: dict[str, Any],
        tokens: Int[Array, "B L"],
        documents: Integer[Array, "B L"] | None = None,
        seen: Bool[Array, "B 1 L"] | None = None,
    ) -> Any:
        angles = self._angles(tokens)

        def apply(block: NeoXBlock, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
            return block(x, angles, documents=documents, seen=seen)

        embedded = collectives.embedding_lookup(self.embed.embedding[...], tokens).astype(self.dtype)
        return scan.scan_blocks(graphdef, stacked, embedded, apply, self.dtype, self.remat)

    def _angles(self, tokens: Int[Array, "B L"]) -> attention.RotaryAngles:
        return attention.rotary_angles(self.architecture.rotary, self.architecture.rotary_base, tokens.shape[1])

    def hidden(
        self, tokens: Int[Array, "B L"], documents: Integer[Array, "B L"] | None = None
    ) -> Float[Array, "B L D"]:
        """Return the head's input: the final residual stream, normalised; `documents` do not attend to each other."""
        return self.norm(self.residual(tokens, documents)[0])

    def __call__(
        self, tokens: Int[Array, "B L"], documents: Integer[Array, "B L"] | None = None
    ) -> Float[Array, "B L O"]:
        """Return the logits at every position, float32."""
        return self._logits(self.hidden(tokens, documents))

    def _logits(self, hidden: Float[Array, "*rest D"]) -> Float[Array, "*rest O"]:
        return layers.head_columns(hidden, self.head.kernel[...], self.outputs)

    def classify(self, tokens: Int[Array, "B L"], lengths: Int[Array, " B"]) -> Float[Array, "B O"]:
        """Return the logits at each row's right-most real token (paper section 4.3) or as `pooling` says, float32.

        Rows are padded on the right; causality keeps padding out of every real position. The last block computes keys
        and values of all positions, and everything else of that one alone: exact, and a fraction of the work.
        """
        real = attention.padding_mask(tokens.shape[1], lengths)
        seen = real if self.architecture.attention == "full" else None
        graphdef, stacked = scan.split_stack(self.blocks)
        if self.architecture.pooling == "mean":
            hidden = self.norm(self._scan(graphdef, stacked, tokens, seen=seen)[0])
            return self._logits(layers.mean_of_real(hidden, real[:, 0]))
        x, _ = self._scan(graphdef, jax.tree.map(lambda leaf: leaf[:-1], stacked), tokens, seen=seen)
        last = scan.merge_block(graphdef, jax.tree.map(lambda leaf: leaf[-1], stacked), self.dtype)
        at = jnp.maximum(lengths - 1, 0) if self.architecture.pooling == "last" else jnp.zeros_like(lengths)
        return self._logits(self.norm(last(x, self._angles(tokens), at, seen=seen))[:, 0])


def take_position(x: Float[Array, "B L *rest"], at: Int[Array, " B"]) -> Float[Array, "B 1 *rest"]:
    """Return position `at` of each row."""
    return jnp.take_along_axis(x, at.reshape(-1, *[1] * (x.ndim - 1)), axis=1)


def layer_norm(a: NeoXArchitecture, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Return a LayerNorm with scale and bias; flax computes its statistics in float32 whatever `dtype` is."""
    return nnx.LayerNorm(a.hidden, epsilon=a.norm_eps, dtype=dtype, rngs=rngs)


def small_init(a: NeoXArchitecture) -> nnx.Initializer:
    """Return GPT-NeoX's `small_init`, which Pythia's configurations name: normal with variance 2 / (5 D)."""
    return nnx.initializers.normal((2 / (5 * a.hidden)) ** 0.5)


def output_init(a: NeoXArchitecture) -> nnx.Initializer:
    """Return GPT-NeoX's `wang_init`, for layers that write to the residual stream: deviation 2 / (N sqrt D)."""
    return nnx.initializers.normal(2 / (a.layers * a.hidden**0.5))


def parameter_count(params: Mapping[str, Any]) -> int:
    """Return the number of scalars in a tree of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
