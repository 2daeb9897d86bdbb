"""Models by architecture: the model, its graphdef without arrays, and its parameters as shapes or random."""

import functools
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
    """Return the model of an architecture, with a template head of `slots` columns or a language-model head."""
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
    """Return a model's graphdef, built without arrays, for this process's platform unless another is named."""
    return _abstract(architecture, slots, dtype, remat, platform or jax.default_backend())[0]


def abstract_params(architecture: Architecture, slots: int | None = None) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shapes of a model's parameters as plain nested dicts."""
    return nnx.to_pure_dict(_abstract(architecture, slots, jnp.float32, "none", "cpu")[1])


@functools.lru_cache(maxsize=32)  # tracing takes a large part of a second, and a training needs the shapes often
def _abstract(
    architecture: Architecture, slots: int | None, dtype: Any, remat: Remat, platform: str
) -> tuple[nnx.GraphDef[Any], nnx.State]:
    """Return a model's graphdef and the shapes of its parameters."""
    return nnx.split(nnx.eval_shape(lambda: make_model(architecture, slots, dtype, remat, platform, rngs=nnx.Rngs(0))))


def random_params(architecture: Architecture, slots: int | None, seed: int, shardings: PyTree | None = None) -> PyTree:
    """Return random parameters as plain nested dicts; the values do not depend on the shardings.

    Args:
        architecture: Architecture of the model.
        slots: Columns of a template head; None makes a language-model head.
        seed: Seed of the initializers.
        shardings: Sharding of each leaf of the parts to return; without it, all parts on one device.
    """

    def init(key: jax.Array) -> PyTree:
        params = nnx.to_pure_dict(nnx.split(make_model(architecture, slots, rngs=nnx.Rngs(key)))[1])
        return params if shardings is None else {part: params[part] for part in shardings}

    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))
