"""Cross-entropy over a vocabulary whose logits never exist whole.

Dims: B batch, L length, D hidden, V vocabulary, C chunks of L.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtempl import partition

# Logits alive at a time on a device: on a CPU 8 MB in float32, which stay in its cache; elsewhere 0.5 GB.
CHUNK_LOGITS = {"cpu": 2**21}
ELSEWHERE = 2**27

Gradients = tuple[Float[Array, "B L D"], Float[Array, "D V"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def summed_cross_entropy(
    hidden: Float[Array, "B L D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    platform: str,
) -> Float[Array, ""]:
    """Sum over positions of weight times -log softmax(hidden @ kernel)[target], in float32 nats.

    The gradients come out of the same pass over the chunks as the loss, so no chunk's logits are made twice
    and none are kept. On a mesh a device may hold some of V alone; `hidden` has been `entered` then.

    Args:
        hidden: what the head reads.
        kernel: the head's.
        targets: the token that each position is to predict.
        weights: of the positions.
        platform: what it is to run on; it decides the size of a chunk.
    """
    parts = _chunks(kernel.shape[1], platform, hidden, targets, weights)
    return jax.lax.map(lambda part: _chunk_loss(part[0], kernel, *part[1:]), parts).sum()


def _chunks(vocabulary: int, platform: str, *arrays: Array) -> tuple[Array, ...]:
    """Each [B L ...] array as [C B L/C ...]."""
    batch, length = arrays[0].shape[:2]
    most = CHUNK_LOGITS.get(platform, ELSEWHERE)
    enough = (c for c in range(1, length + 1) if length % c == 0 and batch * length // c * vocabulary <= most)
    count = next(enough, length)
    return tuple(jnp.moveaxis(a.reshape(batch, count, -1, *a.shape[2:]), 1, 0) for a in arrays)


def _chunk_loss(hidden: Array, kernel: Array, targets: Array, weights: Array) -> Float[Array, ""]:
    hidden = hidden.reshape(-1, hidden.shape[-1])  # XLA's CPU matmul is several times faster on two dims
    logits = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    highest = partition.greatest(logits.max(axis=1))
    normaliser = highest + jnp.log(partition.leave(jnp.exp(logits - highest[:, None]).sum(axis=1)))
    return jnp.sum(weights.reshape(-1) * (normaliser - partition.picked(logits, targets.reshape(-1))))


def _forward(hidden: Array, kernel: Array, targets: Array, weights: Array, platform: str) -> tuple[Array, Gradients]:
    def chunk(carry: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        loss, (d_hidden, d_kernel) = jax.value_and_grad(_chunk_loss, (0, 1))(part[0], kernel, *part[1:])
        return (carry[0] + loss, carry[1] + d_kernel), d_hidden

    start = (jnp.zeros((), jnp.float32), jnp.zeros_like(kernel))
    parts = _chunks(kernel.shape[1], platform, hidden, targets, weights)
    (loss, d_kernel), d_hidden = jax.lax.scan(chunk, start, parts)
    return loss, (jnp.moveaxis(d_hidden, 0, 1).reshape(hidden.shape), d_kernel)


def _backward(platform: str, gradients: Gradients, cotangent: Array) -> tuple[Array, Array, None, None]:
    d_hidden, d_kernel = gradients
    return d_hidden * cotangent.astype(d_hidden.dtype), d_kernel * cotangent, None, None


summed_cross_entropy.defvjp(_forward, _backward)
