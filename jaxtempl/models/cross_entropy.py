"""Cross-entropy over a vocabulary whose logits never exist whole.

Nothing but the kernel and its gradient grows with the vocabulary: logits are made for some tokens at a time, and the
kernel's gradient is added up for some of its rows at a time. So is the kernel brought to the computation's precision on
a CPU; an accelerator holds it whole in that.

Dims: B batch, L length, T tokens of a chunk, D hidden, V vocabulary, C parts that an axis is cut into.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtempl.parallel import collectives

# Numbers of one array on a device, in float32: on a CPU 32 MB, for with less the products are slower; elsewhere 0.5 GB.
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
    """Sum over positions of weight times -log softmax(hidden @ kernel + bias)[target], in float32 nats.

    The gradients come out of the same pass over the chunks as the loss, so no chunk's logits are made twice
    and none are kept. On a mesh a device may hold some of V alone; `hidden` has been `entered` then.

    Args:
        hidden: what the head reads.
        kernel: the head's.
        targets: the token that each position is to predict.
        weights: of the positions.
        platform: what it is to run on; it decides the size of a chunk.
        bias: the head's, where it has one.
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

    def chunk(part: tuple[Array, ...]) -> Array:
        hidden, targets = part
        return _losses(_logits(hidden, kernel, bias, platform), targets)[0]

    by_chunk = jax.lax.map(chunk, _chunks(kernel.shape[1], platform, hidden, targets))
    return jnp.moveaxis(by_chunk.reshape(len(by_chunk), len(targets), -1), 0, 1).reshape(targets.shape)


def _chunks(vocabulary: int, platform: str, *arrays: Array) -> tuple[Array, ...]:
    """Each [B L ...] array as [C T ...], a chunk being some positions of every row."""
    batch, length = arrays[0].shape[:2]
    parts = chunk_count(length, batch * vocabulary, platform)
    cut = (jnp.moveaxis(a.reshape(batch, parts, -1, *a.shape[2:]), 1, 0) for a in arrays)
    return tuple(part.reshape(parts, -1, *part.shape[3:]) for part in cut)


def chunk_count(length: int, size: int, platform: str) -> int:
    """Into how many equal parts to cut an axis, each place of which holds `size` numbers."""
    most = CHUNK_LOGITS.get(platform, DEFAULT_CHUNK_LOGITS)
    enough = (c for c in range(1, length + 1) if length % c == 0 and length // c * size <= most)
    return next(enough, length)


def _converted(kernel: Float[Array, "D V"], dtype: Any, platform: str) -> int:
    """Into how many parts to cut the rows of a kernel that products convert to `dtype`.

    Where it is more than one (6.9b and 12b, on an accelerator) each chunk converts them anew; a copy of the whole
    would grow with the vocabulary.
    """
    return 1 if kernel.dtype == dtype else chunk_count(kernel.shape[0], kernel.shape[1], platform)


def _part(x: Array, index: Array, parts: int, axis: int = 0) -> Array:
    """One of the equal parts of an axis."""
    size = x.shape[axis] // parts
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _product(a: Float[Array, "M K"], b: Float[Array, "K N"]) -> Float[Array, "M N"]:
    """Multiplied in the precision of `a`, summed in float32."""
    return jnp.matmul(a, b.astype(a.dtype), preferred_element_type=jnp.float32)


def _logits(hidden: Float[Array, "T D"], kernel: Float[Array, "D V"], bias: Bias, platform: str) -> Float[Array, "T V"]:
    """In float32; by rows of the kernel where these are converted for a chunk alone."""
    parts = _converted(kernel, hidden.dtype, platform)

    def add(logits: Array, index: Array) -> tuple[Array, None]:
        return logits + _product(_part(hidden, index, parts, 1), _part(kernel, index, parts)), None

    zeros = jnp.zeros((len(hidden), kernel.shape[1]), jnp.float32)
    start = zeros if bias is None else zeros + bias[None]
    return jax.lax.scan(add, start, jnp.arange(parts), unroll=parts == 1)[0]


def _losses(
    logits: Float[Array, "T V"], targets: Int[Array, " T"]
) -> tuple[Float[Array, " T"], Float[Array, "T V"], Float[Array, " T"]]:
    """-log softmax at the target, exp(logit - the greatest), and the sum of these over V."""
    highest = collectives.all_reduce_max(logits.max(axis=1))
    powers = jnp.exp(logits - highest[:, None])
    total = collectives.all_reduce(powers.sum(axis=1))
    return highest + jnp.log(total) - collectives.take_columns(logits, targets), powers, total


@jax.named_scope("loss")
def _forward(
    hidden: Array, kernel: Array, targets: Array, weights: Array, platform: str, bias: Bias
) -> tuple[Array, Gradients]:
    def chunk(carry: tuple[Any, ...], part: tuple[Array, ...]) -> tuple[tuple[Any, ...], Array]:
        (loss, d_kernel, d_bias), (hidden, targets, weights) = carry, part
        losses, powers, total = _losses(_logits(hidden, kernel, bias, platform), targets)
        at = jnp.arange(kernel.shape[1])[None] == collectives.local_ids(targets, kernel.shape[1])[:, None]
        d_logits = powers * (weights / total)[:, None] - jnp.where(at, weights[:, None], 0)
        d_bias = None if d_bias is None else d_bias + d_logits.sum(axis=0)
        d_logits = d_logits.astype(hidden.dtype)
        d_kernel = _added(d_kernel, hidden, d_logits, platform)
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
    """By rows of the kernel where these are converted for a chunk alone."""
    parts = _converted(kernel, hidden.dtype, platform)

    def multiply(_: None, index: Array) -> tuple[None, Array]:
        return None, _product(d_logits, _part(kernel, index, parts).T).astype(hidden.dtype)

    columns = jax.lax.scan(multiply, None, jnp.arange(parts), unroll=parts == 1)[1]
    return jnp.moveaxis(columns, 0, 1).reshape(hidden.shape)


def _added(
    d_kernel: Float[Array, "D V"], hidden: Float[Array, "T D"], d_logits: Float[Array, "T V"], platform: str
) -> Float[Array, "D V"]:
    """With a chunk's, in place, by rows."""
    parts = chunk_count(d_kernel.shape[0], d_kernel.shape[1], platform)

    def add(d_kernel: Array, index: Array) -> tuple[Array, None]:
        new = _part(d_kernel, index, parts) + _product(_part(hidden, index, parts, 1).T, d_logits)
        return jax.lax.dynamic_update_slice_in_dim(d_kernel, new, index * len(new), 0), None

    return jax.lax.scan(add, d_kernel, jnp.arange(parts), unroll=parts == 1)[0]


def _backward(platform: str, gradients: Gradients, cotangent: Array) -> tuple[Array, Array, None, None, Bias]:
    d_hidden, d_kernel, d_bias = gradients
    of_bias = None if d_bias is None else d_bias * cotangent
    return d_hidden * cotangent.astype(d_hidden.dtype), d_kernel * cotangent, None, None, of_bias


summed_cross_entropy.defvjp(_forward, _backward)
