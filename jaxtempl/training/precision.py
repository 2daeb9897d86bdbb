"""The precision of the computation, and for float16 the scale that keeps small gradients from vanishing.

Parameters, moments, softmax and loss are float32 in every one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

INITIAL_SCALE = 2.0**12  # this and the two below are Pythia's (its configurations' `fp16` block)
WINDOW = 1000  # finite steps before the scale doubles
HYSTERESIS = 2  # overflows before it halves


class LossScale(NamedTuple):
    """What a float16 loss is multiplied by before its gradient is taken, and how that has gone.

    Attributes:
        scale: the factor.
        finite: steps without overflow since the last one, or since it last grew.
        patience: overflows until it halves.
        skipped: updates left out so far.
    """

    scale: Float32[Array, ""]
    finite: Int32[Array, ""]
    patience: Int32[Array, ""]
    skipped: Int32[Array, ""]


def compute_dtype(precision: str) -> jnp.dtype:
    """Of `fp32`, `bf16` or `fp16`; `auto` is bf16 on accelerators and fp32 on the CPU."""
    if precision == "auto":
        precision = "fp32" if jax.default_backend() == "cpu" else "bf16"
    return jnp.dtype({"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}[precision])


def initial_loss_scale(dtype: jnp.dtype) -> LossScale | None:
    """The scale at the start of a float16 training; others need none."""
    if dtype != jnp.float16:
        return None
    scale, *counts = jnp.float32(INITIAL_SCALE), *(jnp.array(n, jnp.int32) for n in (0, HYSTERESIS, 0))
    return LossScale(scale, *counts)  # each a buffer of its own, for all are donated


def update_loss_scale(was: LossScale, finite: Bool[Array, ""]) -> LossScale:
    """The scale after a step: twice what it was after `WINDOW` finite ones, half after `HYSTERESIS` overflows.

    It never falls below 1; overflows at 1 are for the caller to stop at.
    """
    run = jnp.where(finite, was.finite + 1, 0)
    grown, shrunk = finite & (run == WINDOW), ~finite & (was.patience <= 1)
    factor = jnp.where(grown, 2.0, jnp.where(shrunk, 0.5, 1.0))
    less = jnp.where(finite | shrunk, was.patience, was.patience - 1)
    return LossScale(
        scale=jnp.maximum(was.scale * factor, 1.0),
        finite=jnp.where(grown, 0, run),
        patience=jnp.where(grown, HYSTERESIS, less),
        skipped=was.skipped + jnp.where(finite, 0, 1),
    )
