"""The precision of the computation; parameters, moments, softmax and loss are float32 in every one."""

import jax
import jax.numpy as jnp

from jaxtempl.errors import UserError


def compute_dtype(precision: str) -> jnp.dtype:
    """`fp32` or `bf16`; `auto` is bf16 on accelerators and fp32 on the CPU.

    Raises:
        UserError: fp16, which needs dynamic loss scaling and does not exist yet.
    """
    if precision == "fp16":
        raise UserError(
            "precision fp16 (Tables 1 and 2) needs loss scaling, which is not there yet; use --precision=bf16 or fp32"
        )
    if precision == "auto":
        precision = "fp32" if jax.default_backend() == "cpu" else "bf16"
    return jnp.dtype({"fp32": jnp.float32, "bf16": jnp.bfloat16}[precision])
