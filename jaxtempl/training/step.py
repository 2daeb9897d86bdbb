"""The compiled functions of one update: gradient of a microbatch, sum, and update."""

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


class GradientSum(NamedTuple):
    """What the microbatches of one batch add up to."""

    gradient: PyTree
    sums: Sums


def run_update(functions: "CompiledStep", state: TrainState, batch: list[DeviceMicrobatch]) -> tuple[TrainState, Sums]:
    """The state after a batch, and the step's metrics."""
    scale = state.scale and state.scale.scale
    parts = (functions.gradient(state.params, microbatch, scale) for microbatch in batch)
    return functions.update(state, functools.reduce(functions.add, parts))


class CompiledStep(NamedTuple):
    """The compiled functions of a training.

    Attributes:
        gradient: parameters, a microbatch and the loss scale, or None, to its Total.
        add: two totals to one; the first is donated.
        update: state and a batch's Total to the new state, the old one donated, and the step's metrics.
        measure: parameters and a microbatch to its sums alone.
    """

    gradient: Callable[[PyTree, DeviceMicrobatch, Float[Array, ""] | None], GradientSum]
    add: Callable[[GradientSum, GradientSum], GradientSum]
    update: Callable[[TrainState, GradientSum], tuple[TrainState, Sums]]
    measure: Callable[[PyTree, DeviceMicrobatch], Sums]


def compile_step(task: Objective, optimizer: optax.GradientTransformation, places: TrainState) -> CompiledStep:
    """The functions of a training, compiled when first called: `gradient` once a microbatch shape, the rest once.

    Args:
        task: loss and metrics.
        optimizer: what turns a mean gradient into an update.
        places: where the state lies and stays, from `state_shardings`.
    """
    step: Any = places.step
    mesh: Mesh = step.mesh

    def gradient(params: PyTree, batch: DeviceMicrobatch, scale: Float[Array, ""] | None) -> GradientSum:
        def of_rows(params: PyTree, batch: DeviceMicrobatch, scale: Float[Array, ""] | None) -> tuple[PyTree, Sums]:
            def scaled(params: PyTree) -> tuple[Float[Array, ""], Sums]:
                loss, sums = task.loss(params, batch)
                return (loss if scale is None else loss * scale), sums

            (_, sums), gradients = jax.value_and_grad(scaled, has_aux=True)(params)
            return collectives.reduce_gradients(gradients, sums)

        return GradientSum(*collectives.shard_over_mesh(of_rows, mesh, params, "gradient")(params, batch, scale))

    def measure(params: PyTree, batch: DeviceMicrobatch) -> Sums:
        def of_rows(params: PyTree, batch: DeviceMicrobatch, _: None) -> Sums:
            return collectives.reduce_gradients({}, task.loss(params, batch)[1])[1]

        return collectives.shard_over_mesh(of_rows, mesh, params, "sums")(params, batch, None)

    def add(total: GradientSum, new: GradientSum) -> GradientSum:
        return jax.tree.map(jnp.add, total, new)

    def update(state: TrainState, total: GradientSum) -> tuple[TrainState, Sums]:
        count = jnp.maximum(total.sums["weight"], 1.0) * (1.0 if state.scale is None else state.scale.scale)
        mean = jax.tree.map(lambda g: g / count, total.gradient)
        changes, moments = optimizer.update(mean, state.optimizer, state.params)
        work = {name: total.sums[name] for name in ("tokens", "flops")}
        metrics = {**task.metrics(total.sums), "gradient_norm": optax.tree.norm(mean), **work}
        new = TrainState(optax.apply_updates(state.params, changes), moments, state.step + 1)
        return (new, metrics) if state.scale is None else _unless_overflown(state, state.scale, new, metrics)

    updates = jax.jit(update, donate_argnums=0, out_shardings=(places, None))
    return CompiledStep(jax.jit(gradient), jax.jit(add, donate_argnums=0), updates, jax.jit(measure))


def compile_token_losses(objective: Objective, mesh: Mesh) -> Callable[[PyTree, DeviceMicrobatch], Float[Array, "B P"]]:
    """Return the loss of each position of a microbatch as one function on the mesh, without a gradient.

    Args:
        objective: that of a language model.
        mesh: devices that hold the parameters and that the rows are cut over.
    """
    assert objective.token_losses is not None
    losses = objective.token_losses

    def evaluate(params: PyTree, batch: DeviceMicrobatch) -> Float[Array, "B P"]:
        def of_rows(params: PyTree, batch: DeviceMicrobatch, _: None) -> Float[Array, "b P"]:
            return losses(params, batch)

        return collectives.shard_over_mesh(of_rows, mesh, params, "rows")(params, batch, None)

    return jax.jit(evaluate)


def _unless_overflown(old: TrainState, scale: LossScale, new: TrainState, metrics: Sums) -> tuple[TrainState, Sums]:
    """The new state, or where a gradient is not finite the old one with a step done and a smaller scale."""
    finite = jnp.isfinite(metrics["gradient_norm"]) & jnp.isfinite(metrics["loss"])
    params, moments = jax.tree.map(
        lambda a, b: jnp.where(finite, a, b), (new.params, new.optimizer), (old.params, old.optimizer)
    )
    after = precision.update_loss_scale(scale, finite)
    told = {"loss_scale": scale.scale, "skipped": after.skipped, "overflow": 1.0 - finite}
    return TrainState(params, moments, new.step, after), {**metrics, **told}
