"""Rotary position embeddings, and softmax attention: causal, or to all real positions.

Dims: B batch, L length, Q queries, M keys up to a chunk's end, H heads, K head_dim, R rotated dims of a head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxtempl.parallel import collectives

Heads = Float[Array, "B H L K"]
Documents = Integer[Array, "B L"] | None

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
    # On several CPU devices, XLA's collectives next to the recomputing backward pass deadlock (jaxlib 0.10.2).
    is_sharded = collectives.axis_size("fsdp") > 0
    output = _causal_forward(q, k, v, documents)[0] if is_sharded else _causal(q, k, v, documents)
    return jnp.swapaxes(output, 1, 2)


@jax.custom_vjp
def _causal(q: Heads, k: Heads, v: Heads, documents: Documents) -> Heads:
    """Compute causal attention by chunks of queries, whose weights the backward pass computes again.

    This is flash attention's backward pass (Dao et al., 2022, algorithm 4) in XLA's products. Saved weights would be
    written to memory and read again, which costs a CPU more than their exponentials do.
    """
    return _causal_forward(q, k, v, documents)[0]


class _Saved(NamedTuple):
    """The residuals of the forward pass.

    Attributes:
        q: Queries, scaled.
        k: Keys.
        v: Values.
        documents: Document of each position.
        output: Output.
        log_sums: Logarithm of each query's sum of exponentials.
    """

    q: Heads
    k: Heads
    v: Heads
    documents: Documents
    output: Heads
    log_sums: Float[Array, "B H L 1"]


def _causal_forward(q: Heads, k: Heads, v: Heads, documents: Documents) -> tuple[Heads, _Saved]:
    q = _scaled(q)
    outputs, log_sums = [], []
    for chunk in _chunks(q.shape[2]):
        scores = _scores(q, k, documents, chunk)
        highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - highest)
        total = weights.sum(axis=-1, keepdims=True)
        outputs.append(_product("bhql,bhlk->bhqk", weights.astype(v.dtype), v[:, :, : chunk.stop]) / total)
        log_sums.append(highest + jnp.log(total))
    output = jnp.concatenate(outputs, axis=2).astype(v.dtype)
    return output, _Saved(q, k, v, documents, output, jnp.concatenate(log_sums, axis=2))


def _causal_backward(saved: _Saved, d_output: Heads) -> tuple[Heads, Heads, Heads, None]:
    q, k, v, documents, output, log_sums = saved
    mean = _product("bhqk,bhqk->bhq", d_output, output)[..., None]  # sum over keys of weight times its gradient
    d_q, d_k, d_v = [], *(jnp.zeros(jnp.swapaxes(x, 2, 3).shape, jnp.float32) for x in (k, v))
    for chunk in _chunks(q.shape[2]):
        seen = slice(chunk.stop)
        weights = jnp.exp(_scores(q, k, documents, chunk) - log_sums[:, :, chunk])
        d_weights = _product("bhqk,bhlk->bhql", d_output[:, :, chunk], v[:, :, seen])
        d_scores = (weights * (d_weights - mean[:, :, chunk])).astype(q.dtype)
        d_q.append(_product("bhql,bhlk->bhqk", d_scores, k[:, :, seen]))
        # Transposed, because XLA's CPU products are slow if their large operand is transposed.
        d_k = d_k.at[..., seen].add(_product("bhqk,bhql->bhkl", q[:, :, chunk], d_scores))
        d_v = d_v.at[..., seen].add(_product("bhqk,bhql->bhkl", d_output[:, :, chunk], weights.astype(v.dtype)))
    return (
        _scaled(jnp.concatenate(d_q, axis=2)).astype(q.dtype),
        jnp.swapaxes(d_k, 2, 3).astype(k.dtype),
        jnp.swapaxes(d_v, 2, 3).astype(v.dtype),
        None,
    )


_causal.defvjp(_causal_forward, _causal_backward)


def _chunks(length: int) -> list[slice]:
    """Return the chunks of queries."""
    return [slice(start, min(start + QUERY_CHUNK, length)) for start in range(0, length, QUERY_CHUNK)]


def _scaled(q: Heads) -> Heads:
    return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


def _scores(q: Heads, k: Heads, documents: Documents, chunk: slice) -> Float[Array, "B H Q M"]:
    """Return the float32 scores of a chunk of scaled queries and all keys up to its end."""
    end = chunk.stop
    allowed = (jnp.arange(end)[None] <= jnp.arange(chunk.start, end)[:, None])[None, None]
    if documents is not None:
        allowed &= (documents[:, chunk, None] == documents[:, None, :end])[:, None]
    scores = _product("bhqk,bhlk->bhql", q[:, :, chunk], k[:, :, :end])
    return jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)


def _product(indices: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return an einsum in float32."""
    return jnp.einsum(indices, a, b, preferred_element_type=jnp.float32)


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
    scores = _product("bhqk,bhlk->bhql", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = _product("bhql,bhlk->bhqk", weights.astype(v.dtype), v)
    return (mixed / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
