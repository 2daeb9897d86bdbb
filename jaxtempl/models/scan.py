"""A stack of equal blocks, run by `jax.lax.scan`, so that compile time does not grow with their number.

Dims: B batch, L length, D hidden, N layers.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxtempl.parallel import collectives

Remat = Literal["none", "dots", "full"]
REMAT: dict[Remat, Any] = {  # what of a layer is kept for the backward pass; gathered weights never are
    "none": collectives.save_anything_except_gathered,
    # Attention's products have batch dims, and flash attention shows none: both are computed again.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def split_stack(blocks: nnx.Module) -> tuple[nnx.GraphDef[Any], dict[str, Any]]:
    """The blocks as one block's static half and all their weights [N ...]."""
    graphdef, state = nnx.split(blocks)
    return graphdef, nnx.to_pure_dict(state)


def scan_blocks(
    graphdef: nnx.GraphDef[Any],
    stacked: PyTree,
    x: Float[Array, "B L D"],
    apply: Callable[[Any, Array], Array],
    dtype: Any,
    remat: Remat,
) -> tuple[Float[Array, "B L D"], Float[Array, "N B L D"]]:
    """What leaves the last block, and what leaves every block.

    The second is what parity tests and converters look at; a caller that drops it pays nothing for it under jit.

    Args:
        graphdef: one block's static half.
        stacked: the weights of the blocks to run.
        x: what enters the first.
        apply: runs a block.
        dtype: of the computation.
        remat: what the backward pass computes again, a key of `REMAT`.
    """

    def layer(x: Array, weights: PyTree) -> tuple[Array, Array]:
        x = apply(merge_block(graphdef, weights, dtype), x)
        return x, x

    if remat != "none" or collectives.axis_size("fsdp") > 1:
        layer = jax.checkpoint(layer, policy=REMAT[remat], prevent_cse=False)
    return jax.lax.scan(layer, x, stacked)


def merge_block(graphdef: nnx.GraphDef[Any], weights: PyTree, dtype: Any) -> Any:
    """One block, its weights brought together from the devices that hold their parts."""
    return nnx.merge(graphdef, collectives.gather_params(weights, "blocks/", dtype))
