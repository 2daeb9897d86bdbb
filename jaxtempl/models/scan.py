"""A stack of equal blocks, run by `jax.lax.scan`, so that compile time does not grow with depth.

Dims: B batch, L length, D hidden, N layers.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxtempl.parallel import collectives

Remat = Literal["none", "dots", "full"]
REMAT: dict[Remat, Any] = {  # what a layer saves for the backward pass; never gathered weights
    "none": collectives.save_anything_except_gathered,
    # Attention's products have batch dims, and flash attention shows none, so both are recomputed.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


UNROLLED = 6  # layers of a stack that runs without a loop: on a CPU, copies in and out of stacks cost small models 15 %


def split_stack(blocks: nnx.Module) -> tuple[nnx.GraphDef[Any], dict[str, Any]]:
    """Split the blocks into one block's graphdef and all their weights [N ...]."""
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
    """Return the output of the last block, and of every block.

    Parity tests and converters read the second; under jit, an unused one costs nothing.

    Args:
        graphdef: Graphdef of one block.
        stacked: Weights of the blocks to run.
        x: Input of the first block.
        apply: Function that runs one block.
        dtype: Type of the computation.
        remat: What the backward pass recomputes, a key of `REMAT`.
    """

    def layer(x: Array, weights: PyTree) -> tuple[Array, Array]:
        x = apply(merge_block(graphdef, weights, dtype), x)
        return x, x

    if remat != "none" or collectives.axis_size("fsdp") > 1:
        layer = jax.checkpoint(layer, policy=REMAT[remat], prevent_cse=False)  # the loop prevents it
        return jax.lax.scan(layer, x, stacked)
    return jax.lax.scan(layer, x, stacked, unroll=len(jax.tree.leaves(stacked)[0]) <= UNROLLED)


def merge_block(graphdef: nnx.GraphDef[Any], weights: PyTree, dtype: Any) -> Any:
    """Return one block with its weights gathered from all devices."""
    return nnx.merge(graphdef, collectives.gather_params(weights, "blocks/", dtype))
