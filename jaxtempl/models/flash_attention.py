"""Flash attention where the platform has it: cuDNN's on NVIDIA GPUs, splash attention on TPUs, XLA's elsewhere.

The first two never store the [L L] scores of a row, forward or backward.

Dims: B batch, L length, H heads, K head_dim.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Float, Integer

from jaxtempl.models import attention

Kernel = Literal["xla", "cudnn", "splash"]
TILE = {"xla": 1, "cudnn": 64, "splash": 128}  # the length of a row must be a multiple
BLOCKS = (512, 256, 128)  # queries and keys of a splash-attention block; the first that divides L is used


def choose_kernel(platform: str, head_dim: int, dtype: Any, capability: float | None = None) -> Kernel:
    """Return the attention kernel of a model.

    cuDNN supports half precision only. The TPU's compiler rejects splash attention in float16, and heads of fewer than
    64 dims would leave most of a TPU's 128 lanes empty.

    Args:
        platform: JAX's name of the platform: "cpu", "gpu" or "tpu".
        head_dim: Dims of a head.
        dtype: Type of the computation.
        capability: Compute capability of the GPU, by default this machine's.
    """
    half = jnp.dtype(dtype).itemsize == 2
    if platform == "gpu" and half and head_dim % 8 == 0:
        return (
            "cudnn"
            if head_dim <= _max_cudnn_head_dim(local_capability() if capability is None else capability)
            else "xla"
        )
    if platform == "tpu" and dtype != jnp.float16 and head_dim % 8 == 0 and 64 <= head_dim <= 256:
        return "splash"
    return "xla"


def local_capability() -> float:
    """Return the compute capability of this machine's NVIDIA GPU (9.0 is Hopper), or 0 without one."""
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    return float(capability) if capability[:1].isdigit() else 0.0  # AMD's look like gfx90a


def _max_cudnn_head_dim(capability: float) -> int:
    """Return the largest head_dim that cuDNN's backward pass supports; 0 before Ampere."""
    if capability < 8:
        return 0
    return 256 if 9 <= capability < 10 else 128


def causal(
    kernel: Kernel,
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H K"],
    documents: Integer[Array, "B L"] | None = None,
) -> Float[Array, "B L H K"]:
    """Compute `attention.causal` with a kernel, or with XLA if the kernel does not support these rows."""
    if kernel == "xla" or not supports(kernel, q.shape[1], documents is not None):
        return attention.causal(q, k, v, documents)
    return splash(q, k, v, documents) if kernel == "splash" else cudnn(q, k, v)


def supports(kernel: Kernel, length: int, documents: bool) -> bool:
    """Return whether a kernel supports rows of this length, with or without masked documents.

    cuDNN takes documents only as an [L L] bias, which would cost the memory that flash attention saves.
    """
    return length % TILE[kernel] == 0 and not (kernel == "cudnn" and documents)


def cudnn(
    q: Float[Array, "B L H K"], k: Float[Array, "B L H K"], v: Float[Array, "B L H K"]
) -> Float[Array, "B L H K"]:
    """Compute causal attention with cuDNN, in bfloat16 or float16; scores and softmax are float32."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def splash(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H K"],
    documents: Integer[Array, "B L"] | None = None,
) -> Float[Array, "B L H K"]:
    """Compute causal attention with the TPU's kernel, which skips masked blocks; scores and softmax are float32."""
    length, heads = q.shape[1:3]
    mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads)
    kernel: Any = splash_attention.make_splash_mha_single_device(mask, block_sizes=_blocks(length))
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)  # the kernel does not scale
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    ids = None if documents is None else splash_attention.SegmentIds(*[documents.astype(jnp.int32)] * 2)
    return jnp.swapaxes(jax.vmap(kernel)(q, k, v, ids), 1, 2)


def _blocks(length: int) -> splash_attention.BlockSizes:
    """Return one block size for every operand, forward and backward."""
    size = next(block for block in BLOCKS if length % block == 0)
    return splash_attention.BlockSizes(
        block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size
    )
