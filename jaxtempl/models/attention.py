"""Rotary position embeddings, and softmax attention: causal, or to all real positions.

Dims: B batch, L length, Q queries, H heads, K head_dim, R rotated dims of a head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

QUERY_CHUNK = 64  # a chunk of queries reads no key after its end, which skips most of the masked half


class RotaryAngles(NamedTuple):
    """Rotary tables in float32: bfloat16 would round position 257 to 256."""

    cos: Float[Array, "L 1 R"]
    sin: Float[Array, "L 1 R"]


def rotary_angles(rotary: int, base: float, length: int) -> RotaryAngles:
    """Return the angles of the first `length` positions; dims i and i + R/2 are a pair, as in GPT-NeoX."""
    frequencies = base ** -(jnp.arange(0, rotary, 2, dtype=jnp.float32) / max(rotary, 1))
    turns = jnp.outer(jnp.arange(length, dtype=jnp.float32), frequencies)
    both = jnp.concatenate([turns, turns], axis=-1)[:, None]
    return RotaryAngles(jnp.cos(both), jnp.sin(both))


def apply_rotary(x: Float[Array, "B L H K"], angles: RotaryAngles) -> Float[Array, "B L H K"]:
    """Rotate the first R dims of each head by its position; leave the rest."""
    rotary = angles.cos.shape[-1]
    turned, rest = x[..., :rotary].astype(jnp.float32), x[..., rotary:]
    first, second = jnp.split(turned, 2, axis=-1)
    partner = jnp.concatenate([-second, first], axis=-1)
    turned = turned * angles.cos[None] + partner * angles.sin[None]
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def causal(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H K"],
    documents: Integer[Array, "B L"] | None = None,
) -> Float[Array, "B L H K"]:
    """Compute causal softmax attention; scores and softmax are float32.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        documents: Document of each position, if positions see only their own document.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    length = q.shape[2]
    chunks = []
    for start in range(0, length, QUERY_CHUNK):
        end = min(start + QUERY_CHUNK, length)
        allowed = (jnp.arange(end)[None] <= jnp.arange(start, end)[:, None])[None, None]
        if documents is not None:
            allowed &= (documents[:, start:end, None] == documents[:, None, :end])[:, None]
        chunks.append(_attend(q[:, :, start:end], k[:, :, :end], v[:, :, :end], allowed))
    return jnp.swapaxes(jnp.concatenate(chunks, axis=2), 1, 2)


def single_query(
    q: Float[Array, "B 1 H K"], k: Float[Array, "B L H K"], v: Float[Array, "B L H K"], at: Int[Array, " B"]
) -> Float[Array, "B 1 H K"]:
    """Compute causal attention of the one position `at` of each row."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    allowed = jnp.arange(k.shape[2])[None] <= at[:, None]
    return jnp.swapaxes(_attend(q, k, v, allowed[:, None, None]), 1, 2)


def full(
    q: Float[Array, "B Q H K"], k: Float[Array, "B L H K"], v: Float[Array, "B L H K"], allowed: Bool[Array, "#B #Q L"]
) -> Float[Array, "B Q H K"]:
    """Compute softmax attention of each query to its allowed keys; scores and softmax are float32."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(_attend(q, k, v, allowed[:, None]), 1, 2)


def padding_mask(length: int, lengths: Int[Array, " B"]) -> Bool[Array, "B 1 L"]:
    """Return which positions of right-padded rows are real."""
    return jnp.arange(length)[None, None] < lengths[:, None, None]


def _attend(
    q: Float[Array, "B H Q K"],
    k: Float[Array, "B H L K"],
    v: Float[Array, "B H L K"],
    allowed: Bool[Array, "#B 1 #Q L"],
) -> Float[Array, "B H Q K"]:
    """Compute attention with the division last, on K columns instead of L."""
    scores = jnp.einsum("bhqk,bhlk->bhql", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum("bhql,bhlk->bhqk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (mixed / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
