"""The reference of a conversion: a run's checkpoint in float32, run by Flax.

Dims: B rows, L length, S slots (or vocabulary), N layers, D hidden.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, Int32, PyTree

from jaxtempl.huggingface.mapping import Head
from jaxtempl.models import attention, factory
from jaxtempl.models.bert import Bert
from jaxtempl.models.factory import Model
from jaxtempl.specs.architecture import Architecture, BertArchitecture


class FlaxNetwork:
    """A network with a head, run by Flax in float32.

    Attributes:
        head_position: position that a template head reads: the last token, or BERT's [CLS].
    """

    def __init__(self, params: PyTree, architecture: Architecture, head: Head) -> None:
        graphdef = factory.make_graphdef(
            architecture, params["head"]["kernel"].shape[1] if head == "template" else None
        )
        self._params, self.head_position = params, 0 if isinstance(architecture, BertArchitecture) else -1

        def logits(params: PyTree, ids: jax.Array, lengths: jax.Array) -> jax.Array:
            model: Model = nnx.merge(graphdef, params)
            if head == "template":
                return model.classify(ids, lengths)
            return model(ids, lengths) if isinstance(model, Bert) else model(ids)

        def residual(params: PyTree, ids: jax.Array) -> jax.Array:
            model: Model = nnx.merge(graphdef, params)
            if isinstance(model, Bert):
                return model.residual(ids, attention.padding_mask(ids.shape[1], jnp.array([ids.shape[1]])))[1]
            return model.residual(ids)[1]

        self._logits, self._residual = jax.jit(logits), jax.jit(residual)

    def __call__(
        self, ids: Int32[np.ndarray, "B L"], lengths: Int32[np.ndarray, " B"]
    ) -> Float32[np.ndarray, "B *L S"]:
        """Return the logits of rows padded on the right."""
        with jax.default_matmul_precision("highest"):  # GPUs and TPUs round float32 products otherwise
            return np.asarray(self._logits(self._params, jnp.asarray(ids), jnp.asarray(lengths)))

    def residuals(self, ids: Int32[np.ndarray, "1 L"]) -> Float32[np.ndarray, "N L D"]:
        """Return the residual stream of one row after every layer."""
        with jax.default_matmul_precision("highest"):
            found: Any = self._residual(self._params, jnp.asarray(ids))
        return np.asarray(found)[:, 0]
