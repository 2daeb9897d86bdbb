"""Flash attention where the platform has it: cuDNN's on NVIDIA GPUs, splash attention on TPUs; XLA's elsewhere.

The first two never hold the [L L] scores of a row, forward or backward.

Dims: B batch, L length, H heads, K head_dim.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Float, Integer

from jaxtempl.models import attention

Kernel = Literal["xla", "cudnn", "splash"]
TILE = {"xla": 1, "cudnn": 64, "splash": 128}  # rows of other lengths than its multiples are XLA's
BLOCKS = (512, 256, 128)  # queries and keys that splash attention has in hand at a time, the first that divides L


def choose_kernel(platform: str, head_dim: int, dtype: Any, capability: float | None = None) -> Kernel:
    """The attention of a model on a platform, as JAX names that: "cpu", "gpu" or "tpu".

    A GPU is taken to be this machine's unless its compute capability is told. cuDNN's is of half precision alone. The
    TPU's compiler refuses splash attention in float16; heads of fewer than 64 dims would leave most of a TPU's 128
    lanes empty.
    """
    half = jnp.dtype(dtype).itemsize == 2
    if platform == "gpu" and half and head_dim % 8 == 0:
        return "cudnn" if head_dim <= _cudnn_most(local_capability() if capability is None else capability) else "xla"
    if platform == "tpu" and dtype != jnp.float16 and head_dim % 8 == 0 and 64 <= head_dim <= 256:
        return "splash"
    return "xla"


def local_capability() -> float:
    """Compute capability of this machine's NVIDIA GPU, 9.0 being Hopper's; 0 where there is none."""
    told = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    return float(told) if told[:1].isdigit() else 0.0  # AMD's are called gfx90a and the like


def _cudnn_most(capability: float) -> int:
    """The greatest head_dim that cuDNN's backward pass takes; it begins with Ampere."""
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
    """`attention.causal` by the kernel that was chosen, or by XLA where that one cannot serve."""
    if kernel == "xla" or not supports(kernel, q.shape[1], documents is not None):
        return attention.causal(q, k, v, documents)
    return splash(q, k, v, documents) if kernel == "splash" else cudnn(q, k, v)


def supports(kernel: Kernel, length: int, documents: bool) -> bool:
    """Whether a kernel takes rows of this length, with documents that do not see each other or without.

    cuDNN knows documents as a bias of [L L] alone, which would undo what it is for.
    """
    return length % TILE[kernel] == 0 and not (kernel == "cudnn" and documents)


def cudnn(
    q: Float[Array, "B L H K"], k: Float[Array, "B L H K"], v: Float[Array, "B L H K"]
) -> Float[Array, "B L H K"]:
    """cuDNN's, in bfloat16 or float16; scores and softmax in float32."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def splash(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H K"],
    documents: Integer[Array, "B L"] | None = None,
) -> Float[Array, "B L H K"]:
    """The TPU's: blocks of which the mask leaves nothing are not computed; scores and softmax in float32."""
    length, heads = q.shape[1:3]
    mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads)
    kernel: Any = splash_attention.make_splash_mha_single_device(mask, block_sizes=_blocks(length))
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)  # it scales nothing itself
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    ids = None if documents is None else splash_attention.SegmentIds(*[documents.astype(jnp.int32)] * 2)
    return jnp.swapaxes(jax.vmap(kernel)(q, k, v, ids), 1, 2)


def _blocks(length: int) -> splash_attention.BlockSizes:
    """One size for all that is cut into blocks, forward and backward."""
    size = next(block for block in BLOCKS if length % block == 0)
    return splash_attention.BlockSizes(
        block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size
    )
