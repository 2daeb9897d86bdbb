"""A run's checkpoint as the network that a conversion is held to: float32, whatever the machine computes in.

Dims: B rows, L length, S slots (or vocabulary), N layers, D hidden.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, Int32, PyTree

from jaxtempl.models import build
from jaxtempl.models.config_json import Head
from jaxtempl.models.neox import Architecture, NeoX


class FlaxNetwork:
    """Parameters with a head, run by Flax."""

    def __init__(self, params: PyTree, architecture: Architecture, head: Head) -> None:
        graphdef = build.graphdef(architecture, params["head"]["kernel"].shape[1])
        self._params, self._head = params, head

        def logits(params: PyTree, ids: jax.Array, lengths: jax.Array) -> jax.Array:
            model: NeoX = nnx.merge(graphdef, params)
            return model.classify(ids, lengths) if head == "template" else model(ids)

        def residual(params: PyTree, ids: jax.Array) -> jax.Array:
            model: NeoX = nnx.merge(graphdef, params)
            return model.residual(ids)[1]

        self._logits, self._residual = jax.jit(logits), jax.jit(residual)

    def __call__(
        self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]
    ) -> Float32[np.ndarray, "B *L S"]:
        """Logits of rows padded on the right."""
        with jax.default_matmul_precision("highest"):  # GPUs and TPUs round float32 products otherwise
            return np.asarray(self._logits(self._params, jnp.asarray(ids), jnp.asarray(lengths)))

    def residuals(self, ids: Int32[np.ndarray, "1 L"]) -> Float32[np.ndarray, "N L D"]:
        """The residual stream of one row after every layer."""
        with jax.default_matmul_precision("highest"):
            found: Any = self._residual(self._params, jnp.asarray(ids))
        return np.asarray(found)[:, 0]
