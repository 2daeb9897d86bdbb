"""Flash attention against XLA's on this machine's accelerator, forward and gradients: `python -m bench.attention`.

It needs an NVIDIA GPU or a TPU. The tests compare splash attention with XLA's by its interpreter.
"""

import itertools
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxtempl.models import attention, flash_attention
from jaxtempl.models.flash_attention import Kernel

HEAD_DIMS = (64, 80, 128, 256)  # of 410m, 2.8b, 1.4b and 1b
MAX_DEVIATION = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2, jnp.float16: 3e-3}  # what rounding explains
ROWS, LENGTH, HEADS = 2, 2048, 4


def deviations(kernel: Kernel, head_dim: int, dtype: Any, documents: bool, length: int = LENGTH) -> dict[str, float]:
    """Return the maximum deviations of output and gradients from XLA in float32, relative to each maximum.

    Args:
        kernel: Attention kernel to compare.
        head_dim: Dims of queries, keys and values.
        dtype: Type of the random numbers.
        documents: Whether a row has three documents that do not attend to each other.
        length: Length of a row.
    """
    numbers = jax.random.normal(jax.random.key(0), (4, ROWS, length, HEADS, head_dim)).astype(dtype)
    ends = jnp.array([[length // 5, length // 2], [length // 3, length - 7]])
    ids = (jnp.arange(length)[None, :, None] >= ends[:, None]).sum(axis=2) + 1 if documents else None
    got = _results(lambda q, k, v: flash_attention.causal(kernel, q, k, v, ids), numbers)
    expected = _results(lambda q, k, v: attention.causal(q, k, v, ids), numbers.astype(jnp.float32))
    return {
        name: float(jnp.abs(x.astype(jnp.float32) - y).max() / jnp.abs(y).max())
        for name, x, y in zip(("output", "query", "key", "value"), got, expected, strict=True)
    }


def _results(attend: Any, numbers: Array) -> tuple[Array, ...]:
    """Return the output, and the gradients of queries, keys and values."""

    def both(q: Array, k: Array, v: Array, cotangent: Array) -> Any:
        output, backward = jax.vjp(attend, q, k, v)
        return output, *backward(cotangent)

    return jax.jit(both)(*numbers)


class Case(NamedTuple):
    """Arguments of `deviations`."""

    kernel: Kernel
    head_dim: int
    dtype: Any
    documents: bool


def _cases(platform: str) -> Iterator[Case]:
    """Yield every flash attention that a training on a platform can use."""
    for dtype, head_dim in itertools.product((jnp.bfloat16, jnp.float16), HEAD_DIMS):
        kernel = flash_attention.choose_kernel(platform, head_dim, dtype)
        for documents in (False, True):
            if kernel != "xla" and flash_attention.supports(kernel, LENGTH, documents):
                yield Case(kernel, head_dim, dtype, documents)


def main() -> None:
    """Print every deviation; exit with an error if one is too large or the platform has no flash attention."""
    jax.config.update("jax_default_matmul_precision", "highest")  # TPUs would round XLA's float32 to bfloat16
    platform = jax.default_backend()
    results = [(case, deviations(*case)) for case in _cases(platform)]
    if not results:
        sys.exit(f"no flash attention on {platform}")
    for (kernel, head_dim, dtype, documents), values in results:
        print(f"{kernel} head_dim {head_dim} {jnp.dtype(dtype)} documents {documents}:", values)
    if any(max(values.values()) > MAX_DEVIATION[case.dtype] for case, values in results):
        sys.exit("the deviation from XLA's is too large")


if __name__ == "__main__":
    main()
