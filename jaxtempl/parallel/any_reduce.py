"""A logical OR of flags over all training processes, once a step."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtempl.parallel import rules


class AnyReduce:
    """Reduces boolean flags over all processes; with several processes the result lags one call, so none waits."""

    def __init__(self, mesh: Mesh) -> None:
        self._sharding = NamedSharding(mesh, P(rules.AXES))
        self._devices = mesh.size
        self._any = jax.jit(lambda flags: jnp.any(flags, axis=0), out_shardings=rules.replicated(mesh))
        self._pending: jax.Array | None = None

    def __call__(self, *flags: bool) -> tuple[bool, ...]:
        """Return the previous call's flags, reduced. All processes call it equally often with as many flags."""
        if jax.process_count() == 1:
            return flags
        shape = (self._devices, len(flags))
        with jax.transfer_guard("allow"):
            local = jax.make_array_from_callback(shape, self._sharding, lambda _: np.array([flags]))
        reduced, self._pending = self._pending, self._any(local)
        return (False,) * len(flags) if reduced is None else tuple(map(bool, jax.device_get(reduced)))

    def reset(self) -> None:
        """Discard the flags of the last call, which have been acted on."""
        self._pending = None
