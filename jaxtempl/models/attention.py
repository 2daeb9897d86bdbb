"""Rotary positions and causal attention.

Dims: B batch, L length, H heads, K head_dim, R rotated dims of a head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

QUERY_CHUNK = 128  # queries at a time: a chunk reads no key after its own end, which spares most of the masked half


class Angles(NamedTuple):
    """Rotary tables, float32: bfloat16 would round position 257 to 256."""

    cos: Float[Array, "L 1 R"]
    sin: Float[Array, "L 1 R"]


def angles(rotary: int, base: float, length: int) -> Angles:
    """Angles of the first `length` positions; dim i and dim i + R/2 are a pair (GPT-NeoX's half-split layout)."""
    frequencies = base ** -(jnp.arange(0, rotary, 2, dtype=jnp.float32) / max(rotary, 1))
    turns = jnp.outer(jnp.arange(length, dtype=jnp.float32), frequencies)
    both = jnp.concatenate([turns, turns], axis=-1)[:, None]
    return Angles(jnp.cos(both), jnp.sin(both))


def rotate(x: Float[Array, "B L H K"], angles: Angles) -> Float[Array, "B L H K"]:
    """Turns the first R dims of each head by its position; the rest pass."""
    rotary = angles.cos.shape[-1]
    turned, rest = x[..., :rotary].astype(jnp.float32), x[..., rotary:]
    first, second = jnp.split(turned, 2, axis=-1)
    partner = jnp.concatenate([-second, first], axis=-1)
    turned = turned * angles.cos[None] + partner * angles.sin[None]
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def causal(
    q: Float[Array, "B L H K"], k: Float[Array, "B L H K"], v: Float[Array, "B L H K"]
) -> Float[Array, "B L H K"]:
    """Softmax attention of each position to itself and those before it; scores and softmax in float32."""
    length = q.shape[1]
    chunks = []
    for start in range(0, length, QUERY_CHUNK):
        end = min(start + QUERY_CHUNK, length)
        allowed = jnp.arange(end)[None] <= jnp.arange(start, end)[:, None]
        chunks.append(_attend(q[:, start:end], k[:, :end], v[:, :end], allowed[None, None]))
    return jnp.concatenate(chunks, axis=1)


def single(
    q: Float[Array, "B 1 H K"], k: Float[Array, "B L H K"], v: Float[Array, "B L H K"], at: Int[Array, " B"]
) -> Float[Array, "B 1 H K"]:
    """Attention of the one position `at` of each row to itself and those before it."""
    return _attend(q, k, v, (jnp.arange(k.shape[1])[None] <= at[:, None])[:, None, None])


def _attend(
    q: Float[Array, "B Q H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H K"],
    allowed: Bool[Array, "#B 1 #Q L"],
) -> Float[Array, "B Q H K"]:
    scores = jnp.einsum("bqhk,blhk->bhql", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    return jnp.einsum("bhql,blhk->bqhk", jax.nn.softmax(scores).astype(v.dtype), v)
