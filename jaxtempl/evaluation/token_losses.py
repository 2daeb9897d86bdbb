"""The loss of every token under a checkpoint of an adapt run, through the objective that trained it, on a mesh.

Dims: B rows, L length, P positions of a row with a target.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from jaxtempl.data.loader import Microbatch
from jaxtempl.models import factory
from jaxtempl.parallel import mesh as parallel_mesh
from jaxtempl.parallel import rules
from jaxtempl.parallel.mesh import MeshShape
from jaxtempl.runs.run import Run
from jaxtempl.training import objectives
from jaxtempl.training.objectives import Objective
from jaxtempl.training.precision import compute_dtype
from jaxtempl.training.step import compile_token_losses
from jaxtempl.training.trainer import MICROBATCH_TOKENS


class TokenLosses:
    """A loaded checkpoint that returns the loss of each position; it compiles once for each shape of a microbatch.

    Attributes:
        run: the adapt run.
        mesh: devices that hold the parameters and that the rows of a microbatch are cut over.
    """

    def __init__(self, run: Run, step: int, max_rows: int = MICROBATCH_TOKENS) -> None:
        self.run = run
        self.mesh = parallel_mesh.make_mesh(mesh_shape(run), jax.local_devices())
        self._max_rows = max_rows
        self._params = run.params(step, self.mesh)
        self._losses = compile_token_losses(_objective(run), self.mesh)

    def rows(self, length: int) -> int:
        """Return the number of rows of a microbatch whose rows have `length` tokens."""
        a_device = min(max(MICROBATCH_TOKENS // length, 1), self._max_rows)
        return a_device * self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def __call__(self, microbatch: Microbatch) -> Float32[np.ndarray, "B P"]:
        """Return the loss of each position in nats; those of positions without a target mean nothing.

        Args:
            microbatch: what the objective reads, with `rows(L)` rows.
        """
        placed: Any = jax.device_put(dict(microbatch), rules.row_sharding(self.mesh))
        return np.asarray(self._losses(self._params, placed))


def mesh_shape(run: Run) -> MeshShape:
    """Return the mesh that a run was trained on, or where there are fewer devices now, the best that fits the model."""
    trained = MeshShape(**run.manifest.get("mesh", {"data": 1, "fsdp": 1, "tensor": 1}))
    devices = jax.local_device_count()
    if trained.devices <= devices:
        return trained
    shapes = factory.abstract_params(run.architecture, run.slots)
    return parallel_mesh.choose_mesh(MeshShape(0, 0, 0), shapes, 0, devices)


def _objective(run: Run) -> Objective:
    make = objectives.masked_lm if run.architecture.family == "bert" else objectives.causal_lm
    return make(run.graphdef(compute_dtype("auto")), run.manifest["mask_documents"])
