"""The compiled functions of one update: gradient of a microbatch, sum of gradients, and update."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from jaxtempl.parallel import collectives
from jaxtempl.training import precision
from jaxtempl.training.objectives import DeviceMicrobatch, Objective, Sums
from jaxtempl.training.precision import LossScale
from jaxtempl.training.state import TrainState

Scale = Float[Array, ""] | None  # loss scale of a float16 training


class GradientSum(NamedTuple):
    """Summed gradients and metrics of some microbatches."""

    gradient: PyTree
    sums: Sums


class CompiledStep(NamedTuple):
    """The compiled functions of a training.

    Attributes:
        gradient: Maps parameters, a microbatch and the loss scale (or None) to its GradientSum.
        add: Adds two GradientSums; the first is donated.
        update: Maps state and a batch's GradientSum to the new state and the step's metrics; the old state is donated.
        measure: Maps parameters and a microbatch to its sums.
    """

    gradient: Callable[[PyTree, DeviceMicrobatch, Scale], GradientSum]
    add: Callable[[GradientSum, GradientSum], GradientSum]
    update: Callable[[TrainState, GradientSum], tuple[TrainState, Sums]]
    measure: Callable[[PyTree, DeviceMicrobatch], Sums]


def run_update(functions: CompiledStep, state: TrainState, batch: list[DeviceMicrobatch]) -> tuple[TrainState, Sums]:
    """Return the state after a batch, and the step's metrics."""
    scale = state.scale and state.scale.scale
    parts = (functions.gradient(state.params, microbatch, scale) for microbatch in batch)
    return functions.update(state, functools.reduce(functions.add, parts))


def compile_step(objective: Objective, optimizer: optax.GradientTransformation, shardings: TrainState) -> CompiledStep:
    """Return the jitted functions of a training: `gradient` compiles once a microbatch shape, the rest once.

    Args:
        objective: Loss and metrics.
        optimizer: Gradient transformation that turns a mean gradient into an update.
        shardings: Shardings of the state, from `state_shardings`.
    """
    step: Any = shardings.step
    mesh: Mesh = step.mesh

    # The names of these functions are those of the compiled programs, which profiles show.
    def gradient(params: PyTree, microbatch: DeviceMicrobatch, scale: Scale) -> GradientSum:
        return _gradient(objective, mesh, params, microbatch, scale)

    def add(total: GradientSum, new: GradientSum) -> GradientSum:
        return jax.tree.map(jnp.add, total, new)

    def update(state: TrainState, total: GradientSum) -> tuple[TrainState, Sums]:
        return _update(objective, optimizer, state, total)

    def measure(params: PyTree, microbatch: DeviceMicrobatch) -> Sums:
        return _measure(objective, mesh, params, microbatch)

    return CompiledStep(
        gradient=jax.jit(gradient),
        add=jax.jit(add, donate_argnums=0),
        update=jax.jit(update, donate_argnums=0, out_shardings=(shardings, None)),
        measure=jax.jit(measure),
    )


def compile_token_losses(objective: Objective, mesh: Mesh) -> Callable[[PyTree, DeviceMicrobatch], Float[Array, "B P"]]:
    """Return a jitted function from params and a microbatch to the loss of each predicted position, on the mesh.

    Args:
        objective: Objective of a language model.
        mesh: Mesh of the parameters, over which rows are sharded.
    """
    assert objective.token_losses is not None
    losses = objective.token_losses

    def evaluate(params: PyTree, microbatch: DeviceMicrobatch) -> Float[Array, "B P"]:
        def local(params: PyTree, microbatch: DeviceMicrobatch, _: None) -> Float[Array, "b P"]:
            return losses(params, microbatch)

        return collectives.shard_over_mesh(local, mesh, params, "rows")(params, microbatch, None)

    return jax.jit(evaluate)


def _gradient(
    objective: Objective, mesh: Mesh, params: PyTree, microbatch: DeviceMicrobatch, scale: Scale
) -> GradientSum:
    def local(params: PyTree, microbatch: DeviceMicrobatch, scale: Scale) -> tuple[PyTree, Sums]:
        def scaled_loss(params: PyTree) -> tuple[Float[Array, ""], Sums]:
            loss, sums = objective.loss(params, microbatch)
            return (loss if scale is None else loss * scale), sums

        (_, sums), gradients = jax.value_and_grad(scaled_loss, has_aux=True)(params)
        return collectives.reduce_gradients(gradients, sums)

    sharded = collectives.shard_over_mesh(local, mesh, params, "gradient")
    return GradientSum(*sharded(params, microbatch, scale))


def _measure(objective: Objective, mesh: Mesh, params: PyTree, microbatch: DeviceMicrobatch) -> Sums:
    def local(params: PyTree, microbatch: DeviceMicrobatch, _: None) -> Sums:
        return collectives.reduce_gradients({}, objective.loss(params, microbatch)[1])[1]

    return collectives.shard_over_mesh(local, mesh, params, "sums")(params, microbatch, None)


def _update(
    objective: Objective, optimizer: optax.GradientTransformation, state: TrainState, total: GradientSum
) -> tuple[TrainState, Sums]:
    count = jnp.maximum(total.sums["weight"], 1.0) * (1.0 if state.scale is None else state.scale.scale)
    mean = jax.tree.map(lambda gradient: gradient / count, total.gradient)
    updates, moments = optimizer.update(mean, state.optimizer, state.params)
    work = {name: total.sums[name] for name in ("tokens", "flops")}
    metrics = {**objective.metrics(total.sums), "gradient_norm": optax.tree.norm(mean), **work}
    new = TrainState(optax.apply_updates(state.params, updates), moments, state.step + 1)
    return (new, metrics) if state.scale is None else _skip_overflow(state, state.scale, new, metrics)


def _skip_overflow(old: TrainState, scale: LossScale, new: TrainState, metrics: Sums) -> tuple[TrainState, Sums]:
    """Return the new state; if a gradient is not finite, the old parameters with the step done and a smaller scale."""
    finite = jnp.isfinite(metrics["gradient_norm"]) & jnp.isfinite(metrics["loss"])
    params, moments = jax.tree.map(
        lambda a, b: jnp.where(finite, a, b), (new.params, new.optimizer), (old.params, old.optimizer)
    )
    next_scale = precision.update_loss_scale(scale, finite)
    scaling = {"loss_scale": scale.scale, "skipped": next_scale.skipped, "overflow": 1.0 - finite}
    return TrainState(params, moments, new.step, next_scale), {**metrics, **scaling}
