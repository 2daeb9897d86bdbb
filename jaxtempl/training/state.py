"""The train state: parameters, optimizer state, step and loss scale, and where each leaf is placed."""

from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int32, PyTree

from jaxtempl.parallel import rules
from jaxtempl.runs.checkpoint import Checkpoints
from jaxtempl.training.precision import LossScale


class TrainState(NamedTuple):
    """All that an update changes; `scale` in float16 alone."""

    params: PyTree
    optimizer: PyTree
    step: Int32[Array, ""]
    scale: LossScale | None = None


def state_shardings(
    mesh: Mesh, optimizer: optax.GradientTransformation, params: PyTree, scale: LossScale | None = None
) -> TrainState:
    """Where each part of the state lies: moments where their parameters do, counts everywhere."""
    places: PyTree = rules.shardings(mesh, params)
    everywhere: Any = rules.replicated(mesh)
    moments = optax.tree_map_params(
        optimizer,
        lambda _, place: place,
        jax.eval_shape(optimizer.init, params),
        places,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(places, moments, everywhere, jax.tree.map(lambda _: everywhere, scale))


def initial_state(
    params: PyTree, optimizer: optax.GradientTransformation, mesh: Mesh, scale: LossScale | None = None
) -> TrainState:
    """State before the first update, each part made where it is to lie."""
    places = state_shardings(mesh, optimizer, params, scale)
    params = jax.device_put(params, places.params)
    moments = jax.jit(optimizer.init, out_shardings=places.optimizer)(params)
    counts = jax.device_put((jnp.zeros((), jnp.int32), scale), (places.step, places.scale))
    return TrainState(params, moments, *counts)


def abstract_state(
    mesh: Mesh, optimizer: optax.GradientTransformation, shapes: PyTree, scale: LossScale | None = None
) -> TrainState:
    """Shapes and places of all of a state, for what is restored or compiled, out of those of the parameters."""
    places = state_shardings(mesh, optimizer, shapes, scale)
    kinds = TrainState(shapes, jax.eval_shape(optimizer.init, shapes), jnp.int32(0), scale)
    return rules.with_shardings(kinds, places)


def restore_state(state: TrainState, checkpoints: Checkpoints, step: int) -> TrainState:
    """The state that was saved at `step`, placed as `state` is."""
    params = checkpoints.params(step, state.params)
    optimizer = checkpoints.optimizer(step, optimizer_dict(state))
    done = jax.device_put(jnp.asarray(step, jnp.int32), state.step.sharding)
    moments, scale = _optimizer_from(state, optimizer)
    return TrainState(params, moments, done, scale)


def optimizer_dict(state: TrainState) -> PyTree:
    """The optimizer's state as plain nested dicts, for a checkpoint; in float16 with the loss scale."""
    moments: dict[str, Any] = flax.serialization.to_state_dict(state.optimizer)
    return moments if state.scale is None else {**moments, "loss_scale": state.scale._asdict()}


def _optimizer_from(state: TrainState, saved: dict[str, Any]) -> Any:
    """The optimizer's state and the loss scale out of what `_optimizer_dict` made."""
    moments = {name: part for name, part in saved.items() if name != "loss_scale"}
    scale = None if state.scale is None else LossScale(**saved["loss_scale"])
    return flax.serialization.from_state_dict(state.optimizer, moments), scale
