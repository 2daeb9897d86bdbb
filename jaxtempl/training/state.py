"""The train state: parameters, optimizer state, step and loss scale, and their shardings."""

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
    """Everything that an update changes; `scale` is None except in float16."""

    params: PyTree
    optimizer: PyTree
    step: Int32[Array, ""]
    scale: LossScale | None = None


def state_shardings(
    mesh: Mesh, optimizer: optax.GradientTransformation, params: PyTree, scale: LossScale | None = None
) -> TrainState:
    """Return the shardings of the state: moments as their parameters, counts replicated."""
    shardings: PyTree = rules.shardings(mesh, params)
    replicated: Any = rules.replicated(mesh)
    moments = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        shardings,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(shardings, moments, replicated, jax.tree.map(lambda _: replicated, scale))


def initial_state(
    params: PyTree, optimizer: optax.GradientTransformation, mesh: Mesh, scale: LossScale | None = None
) -> TrainState:
    """Return the state before the first update, each part created in its sharding."""
    shardings = state_shardings(mesh, optimizer, params, scale)
    params = jax.device_put(params, shardings.params)
    moments = jax.jit(optimizer.init, out_shardings=shardings.optimizer)(params)
    counts = jax.device_put((jnp.zeros((), jnp.int32), scale), (shardings.step, shardings.scale))
    return TrainState(params, moments, *counts)


def abstract_state(
    mesh: Mesh, optimizer: optax.GradientTransformation, shapes: PyTree, scale: LossScale | None = None
) -> TrainState:
    """Return the shapes and shardings of a whole state, as restoring and compiling need them."""
    shardings = state_shardings(mesh, optimizer, shapes, scale)
    state = TrainState(shapes, jax.eval_shape(optimizer.init, shapes), jnp.int32(0), scale)
    return rules.with_shardings(state, shardings)


def restore_state(state: TrainState, checkpoints: Checkpoints, step: int) -> TrainState:
    """Return the state saved at `step`, with the shapes and shardings of `state`."""
    params = checkpoints.params(step, state.params)
    optimizer = checkpoints.optimizer(step, optimizer_dict(state))
    count = jax.device_put(jnp.asarray(step, jnp.int32), state.step.sharding)
    moments, scale = _split_optimizer(state, optimizer)
    return TrainState(params, moments, count, scale)


def optimizer_dict(state: TrainState) -> PyTree:
    """Return the optimizer state as plain nested dicts for a checkpoint, in float16 with the loss scale."""
    moments: dict[str, Any] = flax.serialization.to_state_dict(state.optimizer)
    return moments if state.scale is None else {**moments, "loss_scale": state.scale._asdict()}


def _split_optimizer(state: TrainState, saved: dict[str, Any]) -> Any:
    """Return the optimizer state and the loss scale from the dict of `optimizer_dict`."""
    moments = {name: part for name, part in saved.items() if name != "loss_scale"}
    scale = None if state.scale is None else LossScale(**saved["loss_scale"])
    return flax.serialization.from_state_dict(state.optimizer, moments), scale
