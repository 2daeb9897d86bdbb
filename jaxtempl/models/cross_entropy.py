"""Chunked cross-entropy over a large vocabulary, which never stores all logits.

Only the kernel and its gradient grow with the vocabulary: logits are computed for a chunk of tokens at a time, and the
kernel's gradient is accumulated by chunks of its rows. On a CPU the kernel is converted to the computation's precision
by chunks too; an accelerator converts it whole.

Dims: B batch, L length, T tokens of a chunk, D hidden, V vocabulary, C chunks of an axis.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtempl.parallel import collectives

# Elements of one float32 array on a device: 32 MB on a CPU, where products of less are slower; 0.5 GB elsewhere.
CHUNK_LOGITS = {"cpu": 2**23}
DEFAULT_CHUNK_LOGITS = 2**27

Bias = Float[Array, " V"] | None
Gradients = tuple[Float[Array, "B L D"], Float[Array, "D V"], Bias]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def summed_cross_entropy(
    hidden: Float[Array, "B L D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    platform: str,
    bias: Bias = None,
) -> Float[Array, ""]:
    """Return the sum over positions of weight times -log softmax(hidden @ kernel + bias)[target], in float32 nats.

    Loss and gradients come from one pass over the chunks, so that no logits are computed twice or stored. On a mesh, V
    may be sharded over `tensor`; `hidden` has then passed `copy_to_tensor_parallel`.

    Args:
        hidden: Input of the head.
        kernel: Kernel of the head.
        targets: Token to predict at each position.
        weights: Weights of the positions.
        platform: JAX's name of the platform, which determines the size of a chunk.
        bias: Bias of the head, if it has one.
    """
    return (weights * token_cross_entropy(hidden, kernel, targets, platform, bias)).sum()


def token_cross_entropy(
    hidden: Float[Array, "B L D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B L"],
    platform: str,
    bias: Bias = None,
) -> Float[Array, "B L"]:
    """Return -log softmax(hidden @ kernel + bias)[target] of each position, in float32 nats."""

    def chunk(arrays: tuple[Array, ...]) -> Array:
        hidden, targets = arrays
        return _losses(_logits(hidden, kernel, bias, platform), targets)[0]

    by_chunk = jax.lax.map(chunk, _chunks(kernel.shape[1], platform, hidden, targets))
    return jnp.moveaxis(by_chunk.reshape(len(by_chunk), len(targets), -1), 0, 1).reshape(targets.shape)


def _chunks(vocabulary: int, platform: str, *arrays: Array) -> tuple[Array, ...]:
    """Split each [B L ...] array into [C T ...] chunks, each of some positions of every row."""
    batch, length = arrays[0].shape[:2]
    chunks = chunk_count(length, batch * vocabulary, platform)
    split = (jnp.moveaxis(a.reshape(batch, chunks, -1, *a.shape[2:]), 1, 0) for a in arrays)
    return tuple(array.reshape(chunks, -1, *array.shape[3:]) for array in split)


def chunk_count(length: int, size: int, platform: str) -> int:
    """Return the number of equal chunks of an axis with `size` elements at each position."""
    limit = CHUNK_LOGITS.get(platform, DEFAULT_CHUNK_LOGITS)
    fitting = (c for c in range(1, length + 1) if length % c == 0 and length // c * size <= limit)
    return next(fitting, length)


def _conversion_chunks(kernel: Float[Array, "D V"], dtype: Any, platform: str) -> int:
    """Return the number of chunks of a kernel's rows that products convert to `dtype`.

    If it is more than one (6.9b and 12b on an accelerator), each chunk of tokens converts them again; a converted copy
    of the whole would grow with the vocabulary.
    """
    return 1 if kernel.dtype == dtype else chunk_count(kernel.shape[0], kernel.shape[1], platform)


def _slice(x: Array, index: Array, chunks: int, axis: int = 0) -> Array:
    """Return one of the equal chunks of an axis."""
    size = x.shape[axis] // chunks
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _product(a: Float[Array, "M K"], b: Float[Array, "K N"]) -> Float[Array, "M N"]:
    """Multiply in the precision of `a` and sum in float32."""
    return jnp.matmul(a, b.astype(a.dtype), preferred_element_type=jnp.float32)


def _logits(hidden: Float[Array, "T D"], kernel: Float[Array, "D V"], bias: Bias, platform: str) -> Float[Array, "T V"]:
    """Return float32 logits, by chunks of the kernel's rows if these are converted by chunks."""
    chunks = _conversion_chunks(kernel, hidden.dtype, platform)

    def add(logits: Array, index: Array) -> tuple[Array, None]:
        return logits + _product(_slice(hidden, index, chunks, 1), _slice(kernel, index, chunks)), None

    zeros = jnp.zeros((len(hidden), kernel.shape[1]), jnp.float32)
    start = zeros if bias is None else zeros + bias[None]
    return jax.lax.scan(add, start, jnp.arange(chunks), unroll=chunks == 1)[0]


def _losses(
    logits: Float[Array, "T V"], targets: Int[Array, " T"]
) -> tuple[Float[Array, " T"], Float[Array, "T V"], Float[Array, " T"]]:
    """Return -log softmax at the target, exp(logit - max logit), and the sum of the latter over V."""
    highest = collectives.all_reduce_max(logits.max(axis=1))
    powers = jnp.exp(logits - highest[:, None])
    total = collectives.all_reduce(powers.sum(axis=1))
    return highest + jnp.log(total) - collectives.take_columns(logits, targets), powers, total


@jax.named_scope("loss")
def _forward(
    hidden: Array, kernel: Array, targets: Array, weights: Array, platform: str, bias: Bias
) -> tuple[Array, Gradients]:
    def chunk(carry: tuple[Any, ...], arrays: tuple[Array, ...]) -> tuple[tuple[Any, ...], Array]:
        (loss, d_kernel, d_bias), (hidden, targets, weights) = carry, arrays
        losses, powers, total = _losses(_logits(hidden, kernel, bias, platform), targets)
        at = jnp.arange(kernel.shape[1])[None] == collectives.local_ids(targets, kernel.shape[1])[:, None]
        d_logits = powers * (weights / total)[:, None] - jnp.where(at, weights[:, None], 0)
        d_bias = None if d_bias is None else d_bias + d_logits.sum(axis=0)
        d_logits = d_logits.astype(hidden.dtype)
        d_kernel = _accumulate(d_kernel, hidden, d_logits, platform)
        return (loss + (weights * losses).sum(), d_kernel, d_bias), _d_hidden(d_logits, kernel, hidden, platform)

    start = (jnp.zeros((), jnp.float32), jnp.zeros_like(kernel), None if bias is None else jnp.zeros_like(bias))
    (loss, d_kernel, d_bias), d_hidden = jax.lax.scan(
        chunk, start, _chunks(kernel.shape[1], platform, hidden, targets, weights)
    )
    by_row = d_hidden.reshape(len(d_hidden), hidden.shape[0], -1, hidden.shape[2])
    return loss, (jnp.moveaxis(by_row, 0, 1).reshape(hidden.shape), d_kernel, d_bias)


def _d_hidden(
    d_logits: Float[Array, "T V"], kernel: Float[Array, "D V"], hidden: Float[Array, "T D"], platform: str
) -> Float[Array, "T D"]:
    """Return the gradient of `hidden`, by chunks of the kernel's rows if these are converted by chunks."""
    chunks = _conversion_chunks(kernel, hidden.dtype, platform)

    def multiply(_: None, index: Array) -> tuple[None, Array]:
        return None, _product(d_logits, _slice(kernel, index, chunks).T).astype(hidden.dtype)

    columns = jax.lax.scan(multiply, None, jnp.arange(chunks), unroll=chunks == 1)[1]
    return jnp.moveaxis(columns, 0, 1).reshape(hidden.shape)


def _accumulate(
    d_kernel: Float[Array, "D V"], hidden: Float[Array, "T D"], d_logits: Float[Array, "T V"], platform: str
) -> Float[Array, "D V"]:
    """Add a chunk's gradient of the kernel in place, by chunks of rows."""
    chunks = chunk_count(d_kernel.shape[0], d_kernel.shape[1], platform)

    def add(d_kernel: Array, index: Array) -> tuple[Array, None]:
        new = _slice(d_kernel, index, chunks) + _product(_slice(hidden, index, chunks, 1).T, d_logits)
        return jax.lax.dynamic_update_slice_in_dim(d_kernel, new, index * len(new), 0), None

    return jax.lax.scan(add, d_kernel, jnp.arange(chunks), unroll=chunks == 1)[0]


def _backward(platform: str, gradients: Gradients, cotangent: Array) -> tuple[Array, Array, None, None, Bias]:
    d_hidden, d_kernel, d_bias = gradients
    bias_gradient = None if d_bias is None else d_bias * cotangent
    return d_hidden * cotangent.astype(d_hidden.dtype), d_kernel * cotangent, None, None, bias_gradient


summed_cross_entropy.defvjp(_forward, _backward)
