"""A vote of all processes of a training, once a step."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtempl.parallel import rules


class AnyReduce:
    """Whether any process wishes something; with several processes told one call late, so that none waits."""

    def __init__(self, mesh: Mesh) -> None:
        self._place = NamedSharding(mesh, P(rules.AXES))
        self._devices = mesh.size
        self._any = jax.jit(lambda wishes: jnp.any(wishes, axis=0), out_shardings=rules.replicated(mesh))
        self._last: jax.Array | None = None

    def __call__(self, *wishes: bool) -> tuple[bool, ...]:
        """All processes call it equally often, with as many wishes."""
        if jax.process_count() == 1:
            return wishes
        shape = (self._devices, len(wishes))
        with jax.transfer_guard("allow"):
            votes = jax.make_array_from_callback(shape, self._place, lambda _: np.array([wishes]))
        last, self._last = self._last, self._any(votes)
        return (False,) * len(wishes) if last is None else tuple(map(bool, jax.device_get(last)))

    def forget(self) -> None:
        """Leaves out the wishes of the last call, which have been granted."""
        self._last = None
