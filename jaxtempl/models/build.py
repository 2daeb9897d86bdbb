"""Making a model: its static half, without any array, and its parameters, as shapes or drawn."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from jaxtempl.models.neox import Architecture, NeoX, Remat


def graphdef(
    architecture: Architecture, outputs: int, dtype: Any = jnp.float32, remat: Remat = "none", platform: str = ""
) -> nnx.GraphDef[NeoX]:
    """The static half of a model, made without any array, for this process's platform unless another is named."""
    kind = platform or jax.default_backend()
    return nnx.split(nnx.eval_shape(lambda: NeoX(architecture, outputs, dtype, remat, kind, rngs=nnx.Rngs(0))))[0]


def abstract_params(architecture: Architecture, outputs: int) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes of a model's parameters as plain nested dicts."""
    model = nnx.eval_shape(lambda: NeoX(architecture, outputs, rngs=nnx.Rngs(0)))
    return nnx.to_pure_dict(nnx.split(model)[1])


def random_params(architecture: Architecture, outputs: int, seed: int, places: PyTree | None = None) -> PyTree:
    """Fresh parameters as plain nested dicts; the same ones wherever they lie.

    Args:
        architecture: of the model.
        outputs: columns of the head.
        seed: of the draw.
        places: a sharding for each leaf of the parts wanted, where each is made; without it, all on one device.
    """

    def init(key: jax.Array) -> PyTree:
        params = nnx.to_pure_dict(nnx.split(NeoX(architecture, outputs, rngs=nnx.Rngs(key)))[1])
        return params if places is None else {part: params[part] for part in places}

    return jax.jit(init, out_shardings=places)(jax.random.key(seed))
