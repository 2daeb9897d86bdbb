"""Making a model: its static half, without any array, and its parameters, as shapes or drawn."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from jaxtempl.models.bert import Bert
from jaxtempl.models.neox import NeoX
from jaxtempl.models.scan import Remat
from jaxtempl.specs.architecture import Architecture, BertArchitecture, NeoXArchitecture

Model = NeoX | Bert


def make_model(
    architecture: Architecture,
    slots: int | None,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    platform: str = "cpu",
    *,
    rngs: nnx.Rngs,
) -> Model:
    """The model of an architecture: with a template head of `slots` columns, or with its language model's."""
    if isinstance(architecture, BertArchitecture):
        return Bert(architecture, slots, dtype, remat, platform, rngs=rngs)
    assert isinstance(architecture, NeoXArchitecture)
    return NeoX(architecture, slots, dtype, remat, platform, rngs=rngs)


def make_graphdef(
    architecture: Architecture,
    slots: int | None = None,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    platform: str = "",
) -> nnx.GraphDef[Any]:
    """The static half of a model, made without any array, for this process's platform unless another is named."""
    kind = platform or jax.default_backend()
    return nnx.split(nnx.eval_shape(lambda: make_model(architecture, slots, dtype, remat, kind, rngs=nnx.Rngs(0))))[0]


def abstract_params(architecture: Architecture, slots: int | None = None) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes of a model's parameters as plain nested dicts."""
    return nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: make_model(architecture, slots, rngs=nnx.Rngs(0))))[1])


def random_params(architecture: Architecture, slots: int | None, seed: int, places: PyTree | None = None) -> PyTree:
    """Fresh parameters as plain nested dicts; the same ones wherever they lie.

    Args:
        architecture: of the model.
        slots: of a template head; None makes a language model's.
        seed: of the draw.
        places: a sharding for each leaf of the parts wanted, where each is made; without it, all on one device.
    """

    def init(key: jax.Array) -> PyTree:
        params = nnx.to_pure_dict(nnx.split(make_model(architecture, slots, rngs=nnx.Rngs(key)))[1])
        return params if places is None else {part: params[part] for part in places}

    return jax.jit(init, out_shardings=places)(jax.random.key(seed))
