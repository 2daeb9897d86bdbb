"""Compute precision, and the dynamic loss scale that keeps small float16 gradients from underflowing.

Parameters, moments, softmax and loss are float32 in every precision.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

INITIAL_SCALE = 2.0**12  # this and the two below are Pythia's (the `fp16` block of its configurations)
WINDOW = 1000  # finite steps before the scale doubles
HYSTERESIS = 2  # overflows before it halves


class LossScale(NamedTuple):
    """The dynamic factor of a float16 loss.

    Attributes:
        scale: Factor of the loss.
        finite: Steps without overflow since the last overflow or growth.
        patience: Overflows until the factor halves.
        skipped: Updates skipped so far.
    """

    scale: Float32[Array, ""]
    finite: Int32[Array, ""]
    patience: Int32[Array, ""]
    skipped: Int32[Array, ""]


def compute_dtype(precision: str) -> jnp.dtype:
    """Return the type for `fp32`, `bf16` or `fp16`; `auto` is bf16 on accelerators and fp32 on the CPU."""
    if precision == "auto":
        precision = "fp32" if jax.default_backend() == "cpu" else "bf16"
    return jnp.dtype({"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}[precision])


def initial_loss_scale(dtype: jnp.dtype) -> LossScale | None:
    """Return the loss scale at the start of a float16 training; None for other types."""
    if dtype != jnp.float16:
        return None
    scale, *counts = jnp.float32(INITIAL_SCALE), *(jnp.array(n, jnp.int32) for n in (0, HYSTERESIS, 0))
    return LossScale(scale, *counts)  # separate buffers, because all are donated


def update_loss_scale(old: LossScale, finite: Bool[Array, ""]) -> LossScale:
    """Return the scale after a step: doubled after `WINDOW` finite steps, halved after `HYSTERESIS` overflows.

    It never falls below 1; the caller stops at an overflow at 1.
    """
    finite_steps = jnp.where(finite, old.finite + 1, 0)
    grown, shrunk = finite & (finite_steps == WINDOW), ~finite & (old.patience <= 1)
    factor = jnp.where(grown, 2.0, jnp.where(shrunk, 0.5, 1.0))
    patience = jnp.where(finite | shrunk, old.patience, old.patience - 1)
    return LossScale(
        scale=jnp.maximum(old.scale * factor, 1.0),
        finite=jnp.where(grown, 0, finite_steps),
        patience=jnp.where(grown, HYSTERESIS, patience),
        skipped=old.skipped + jnp.where(finite, 0, 1),
    )
