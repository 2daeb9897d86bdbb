"""Column-parallel and row-parallel linear layers, a head's columns, and the mean of a row.

A device holds some columns of the first and some rows of the second, so that a pair needs one all-reduce over `tensor`.

Dims: B batch, L length, D hidden, O outputs.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxtempl.parallel import collectives


class ColumnParallel(nnx.Module):
    """A linear layer [*B D] -> [*B *shape], sharded by outputs; its bias is a flat vector, which any mesh can shard."""

    def __init__(self, hidden: int, shape: tuple[int, ...], init: nnx.Initializer, dtype: Any, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(init(rngs.params(), (hidden, *shape), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(math.prod(shape)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "..."]:
        """Apply the layer to each position."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return jnp.tensordot(collectives.copy_to_tensor_parallel(x), kernel, 1) + bias.reshape(
            *[1] * (x.ndim - 1), *kernel.shape[1:]
        )


class RowParallel(nnx.Module):
    """A linear layer [*B *shape] -> [*B D], sharded by inputs."""

    def __init__(self, shape: tuple[int, ...], hidden: int, init: nnx.Initializer, dtype: Any, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(init(rngs.params(), (*shape, hidden), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(hidden))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "*B D"]:
        """Apply the layer to each position."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        y = collectives.reduce_from_tensor_parallel(jnp.tensordot(x, kernel, kernel.ndim - 1))
        return y + bias.reshape(*[1] * (y.ndim - 1), -1)


class MLP(nnx.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(
        self,
        hidden: int,
        feed_forward: int,
        up_init: nnx.Initializer,
        down_init: nnx.Initializer,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        self.up = ColumnParallel(hidden, (feed_forward,), up_init, dtype, rngs)
        self.down = RowParallel((feed_forward,), hidden, down_init, dtype, rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Apply the layer to each position."""
        tokens = x.reshape(-1, x.shape[-1])  # XLA's CPU matmul is several times faster on two dims
        return self.down(jax.nn.gelu(self.up(tokens), approximate=False)).reshape(x.shape)


def head_columns(
    hidden: Float[Array, "*rest D"], kernel: Float[Array, "D local"], outputs: int
) -> Float[Array, "*rest O"]:
    """Multiply by a head of `outputs` columns, which may be sharded over `tensor`.

    The products are summed in float32: bfloat16 would round logits into ties.
    """
    kernel = kernel.astype(hidden.dtype)
    if kernel.shape[1] == outputs:
        return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    local = jnp.matmul(collectives.copy_to_tensor_parallel(hidden), kernel, preferred_element_type=jnp.float32)
    return collectives.all_gather_columns(local)


def mean_of_real(x: Float[Array, "B L D"], real: Bool[Array, "B L"]) -> Float[Array, "B D"]:
    """Return the mean over a row's real positions, computed in float32."""
    total = jnp.sum(x.astype(jnp.float32) * real[..., None], axis=1)
    return (total / jnp.maximum(real.sum(axis=1, keepdims=True), 1)).astype(x.dtype)
