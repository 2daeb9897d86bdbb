"""The linear layers of a block: into it from the residual stream, and back.

On a mesh a device has some columns of the first and some rows of the second, so one sum over `tensor` a pair suffices.

Dims: D hidden.
"""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtempl import partition


class Into(nnx.Module):
    """[*B D] -> [*B *shape]; the bias is one vector, which any number of devices can hold parts of."""

    def __init__(self, hidden: int, shape: tuple[int, ...], init: nnx.Initializer, dtype: Any, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(init(rngs.params(), (hidden, *shape), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(math.prod(shape)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "..."]:
        """Each position by itself."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return jnp.tensordot(partition.enter(x), kernel, 1) + bias.reshape(*[1] * (x.ndim - 1), *kernel.shape[1:])


class Back(nnx.Module):
    """[*B *shape] -> [*B D]."""

    def __init__(self, shape: tuple[int, ...], hidden: int, init: nnx.Initializer, dtype: Any, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(init(rngs.params(), (*shape, hidden), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(hidden))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "*B D"]:
        """Each position by itself."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        y = partition.leave(jnp.tensordot(x, kernel, kernel.ndim - 1))
        return y + bias.reshape(*[1] * (y.ndim - 1), -1)
