"""Flash attention beside XLA's on this machine's accelerator, forward and gradients: `python -m bench.attention`.

It has not been run: it wants an NVIDIA GPU or a TPU. The tests hold splash attention to XLA's by its interpreter.
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
GREATEST = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2, jnp.float16: 3e-3}  # deviation that rounding explains
ROWS, LENGTH, HEADS = 2, 2048, 4


def deviations(kernel: Kernel, head_dim: int, dtype: Any, documents: bool, length: int = LENGTH) -> dict[str, float]:
    """How far output and gradients are from those of XLA in float32, as shares of the greatest value of each.

    Args:
        kernel: the attention to look at.
        head_dim: of queries, keys and values.
        dtype: of the numbers, which are random.
        documents: whether a row is of three that do not see each other.
        length: of a row.
    """
    numbers = jax.random.normal(jax.random.key(0), (4, ROWS, length, HEADS, head_dim)).astype(dtype)
    ends = jnp.array([[length // 5, length // 2], [length // 3, length - 7]])
    told = (jnp.arange(length)[None, :, None] >= ends[:, None]).sum(axis=2) + 1 if documents else None
    got = _results(lambda q, k, v: flash_attention.causal(kernel, q, k, v, told), numbers)
    wanted = _results(lambda q, k, v: attention.causal(q, k, v, told), numbers.astype(jnp.float32))
    return {
        name: float(jnp.abs(x.astype(jnp.float32) - y).max() / jnp.abs(y).max())
        for name, x, y in zip(("output", "query", "key", "value"), got, wanted, strict=True)
    }


def _results(attend: Any, numbers: Array) -> tuple[Array, ...]:
    """Output, and gradients of queries, keys and values."""

    def both(q: Array, k: Array, v: Array, cotangent: Array) -> Any:
        output, backward = jax.vjp(attend, q, k, v)
        return output, *backward(cotangent)

    return jax.jit(both)(*numbers)


class Case(NamedTuple):
    """What `deviations` looks at."""

    kernel: Kernel
    head_dim: int
    dtype: Any
    documents: bool


def _cases(platform: str) -> Iterator[Case]:
    """Every flash attention that a training there can be given."""
    for dtype, head_dim in itertools.product((jnp.bfloat16, jnp.float16), HEAD_DIMS):
        kernel = flash_attention.choose_kernel(platform, head_dim, dtype)
        for documents in (False, True):
            if kernel != "xla" and flash_attention.supports(kernel, LENGTH, documents):
                yield Case(kernel, head_dim, dtype, documents)


def main() -> None:
    """Prints every deviation, and ends with an error where one is too great or nothing could be looked at."""
    jax.config.update("jax_default_matmul_precision", "highest")  # TPUs would round XLA's float32 to bfloat16
    platform = jax.default_backend()
    found = [(case, deviations(*case)) for case in _cases(platform)]
    if not found:
        sys.exit(f"no flash attention on {platform}")
    for (kernel, head_dim, dtype, documents), told in found:
        print(f"{kernel} head_dim {head_dim} {jnp.dtype(dtype)} documents {documents}:", told)
    if any(max(told.values()) > GREATEST[case.dtype] for case, told in found):
        sys.exit("too far from XLA's")


if __name__ == "__main__":
    main()
