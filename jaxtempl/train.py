"""fit(): the one training loop, over an iterator of batches.

A batch is a list of microbatches. Each adds its gradient to the batch's; one update follows. Metrics of a step
are read only after the next is dispatched, so the device never waits for the host, except where a checkpoint is
due: that one is committed only when its own step's loss and gradient norm are known to be finite.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32, PyTree

from jaxtempl.checkpoint import Checkpoints
from jaxtempl.errors import UserError
from jaxtempl.tasks import Batch, Microbatch, Sums, Task
from jaxtempl.tracking import Tracker


class TrainState(NamedTuple):
    """All that an update changes."""

    params: PyTree
    optimizer: PyTree
    step: Int32[Array, ""]


class Total(NamedTuple):
    """What the microbatches of one batch add up to."""

    gradient: PyTree
    sums: Sums


@dataclasses.dataclass(frozen=True)
class Plan:
    """When training ends and when it saves.

    Attributes:
        steps: updates in all.
        save_every: updates between study checkpoints; the last step always gets one.
        recover_seconds: least time between recovery checkpoints.
        first: whether the state before the first update is validated and saved too.
        clock: seconds now; tests put their own in.
    """

    steps: int
    save_every: int
    recover_seconds: float
    first: bool = False
    clock: Callable[[], float] = time.monotonic


def initial_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first update."""
    return TrainState(params, jax.jit(optimizer.init)(params), jnp.zeros((), jnp.int32))


def fit(
    task: Task,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: Callable[[int], Iterator[Batch]],
    validation: Callable[[], Iterable[Batch]] | None,
    plan: Plan,
    checkpoints: Checkpoints,
    tracker: Tracker,
) -> TrainState:
    """Trains from `state.step` to `plan.steps`.

    Args:
        task: loss and metrics.
        optimizer: what turns a mean gradient into an update.
        state: where to start; donated.
        batches: from a step, the batches of that step and all later ones.
        validation: batches to measure the loss on at each study checkpoint.
        plan: when to end and to save.
        checkpoints: where to save.
        tracker: what is told of each step.

    Raises:
        UserError: the loss or the gradient's norm of a step is not finite; nothing of that step is kept.
    """
    functions = compiled(task, optimizer)

    def study(step: int, params: PyTree) -> None:
        if validation is not None:
            tracker.validated(step, _finite(step, _mean(task, functions, params, validation()), "validation "))

    saved_at = plan.clock()
    previous: tuple[int, Sums] | None = None
    start = int(state.step)
    if plan.first and start == 0:
        study(0, state.params)
        checkpoints.save(0, "study", state.params, None, {"step": 0})
    for step, batch in enumerate(batches(start), start + 1):
        parts = (functions.gradient(state.params, jax.device_put(dict(microbatch))) for microbatch in batch)
        state, metrics = functions.update(state, functools.reduce(functions.add, parts))
        if previous:
            _report(tracker, *previous)
        previous = step, metrics
        due = step % plan.save_every == 0 or step == plan.steps
        recovery = plan.clock() - saved_at >= plan.recover_seconds and step < plan.steps
        if due or recovery:
            _report(tracker, *previous)
            previous = None
            if due:
                study(step, state.params)
            kept = _optimizer_dict(state) if recovery else None
            checkpoints.save(step, "study" if due else "recovery", state.params, kept, {"step": step})
            saved_at = plan.clock() if recovery else saved_at
    return state


def resume(state: TrainState, checkpoints: Checkpoints, step: int) -> TrainState:
    """The state that was saved at `step`, placed as `state` is."""
    params = checkpoints.params(step, state.params)
    optimizer = checkpoints.optimizer(step, _optimizer_dict(state))
    return TrainState(params, _optimizer_from(state, optimizer), jnp.asarray(step, jnp.int32))


class Compiled(NamedTuple):
    """The compiled functions of a training.

    Attributes:
        gradient: parameters and a microbatch to its Total.
        add: two totals to one; the first is donated.
        update: state and a batch's Total to the new state, the old one donated, and the step's metrics.
        measure: parameters and a microbatch to its sums alone.
    """

    gradient: Callable[[PyTree, Microbatch], Total]
    add: Callable[[Total, Total], Total]
    update: Callable[[TrainState, Total], tuple[TrainState, Sums]]
    measure: Callable[[PyTree, Microbatch], Sums]


def compiled(task: Task, optimizer: optax.GradientTransformation) -> Compiled:
    """The functions of a training, compiled when first called: `gradient` once a microbatch shape, the rest once."""

    def gradient(params: PyTree, batch: Microbatch) -> Total:
        (_, sums), gradients = jax.value_and_grad(task.loss, has_aux=True)(params, batch)
        return Total(gradients, sums)

    def add(total: Total, new: Total) -> Total:
        return jax.tree.map(jnp.add, total, new)

    def update(state: TrainState, total: Total) -> tuple[TrainState, Sums]:
        mean = jax.tree.map(lambda g: g / jnp.maximum(total.sums["weight"], 1.0), total.gradient)
        changes, moments = optimizer.update(mean, state.optimizer, state.params)
        metrics = {
            **task.metrics(total.sums),
            "gradient_norm": optax.tree.norm(mean),
            "tokens": total.sums["tokens"],
        }
        return TrainState(optax.apply_updates(state.params, changes), moments, state.step + 1), metrics

    measure = jax.jit(lambda params, batch: task.loss(params, batch)[1])
    donated = jax.jit(add, donate_argnums=0), jax.jit(update, donate_argnums=0)
    return Compiled(jax.jit(gradient), *donated, measure)


def _report(tracker: Tracker, step: int, metrics: Sums) -> None:
    tracker.step(step, _finite(step, {name: float(value) for name, value in metrics.items()}))


def _finite(step: int, values: Mapping[str, float], what: str = "") -> Mapping[str, float]:
    """The metrics of a step, which must be numbers."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(
                f"{what}{name} of step {step} is {value}; nothing of that step was saved: "
                "train into another --out with a lower --rate or another --precision"
            )
    return values


def _mean(task: Task, functions: Compiled, params: PyTree, batches: Iterable[Batch]) -> dict[str, float]:
    parts = (functions.measure(params, jax.device_put(dict(microbatch))) for batch in batches for microbatch in batch)
    sums = functools.reduce(lambda total, new: jax.tree.map(jnp.add, total, new), parts)
    return {name: float(value) for name, value in task.metrics(sums).items()}


def _optimizer_dict(state: TrainState) -> PyTree:
    """The optimizer's state as plain nested dicts, for a checkpoint."""
    return flax.serialization.to_state_dict(state.optimizer)


def _optimizer_from(state: TrainState, saved: PyTree) -> PyTree:
    return flax.serialization.from_state_dict(state.optimizer, saved)
