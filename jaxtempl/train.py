"""fit(): the one training loop, over an iterator of batches.

A batch is a list of microbatches. Each adds its gradient to the batch's; one update follows. Metrics of a step
are read only after the next is dispatched, so the device never waits for the host, except where a checkpoint is
due: that one is saved only when its own step's loss and gradient norm are known to be finite. Nothing else goes
between host and device unasked: the transfer guard is on.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, PyTree

from jaxtempl import cluster, partition, precision
from jaxtempl.checkpoint import Checkpoints, Kind
from jaxtempl.errors import UserError
from jaxtempl.interrupt import Interrupted
from jaxtempl.precision import LossScale
from jaxtempl.tasks import Batch, Microbatch, Sums, Task
from jaxtempl.tracking import Tracker


class TrainState(NamedTuple):
    """All that an update changes; `scale` in float16 alone."""

    params: PyTree
    optimizer: PyTree
    step: Int32[Array, ""]
    scale: LossScale | None = None


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


def state_shardings(
    mesh: Mesh, optimizer: optax.GradientTransformation, params: PyTree, scale: LossScale | None = None
) -> TrainState:
    """Where each part of the state lies: moments where their parameters do, counts everywhere."""
    places: PyTree = partition.shardings(mesh, params)
    everywhere: Any = partition.whole(mesh)
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
    return partition.placed(kinds, places)


def fit(
    task: Task,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: Callable[[int], Iterator[Batch]],
    validation: Callable[[], Iterable[Batch]] | None,
    plan: Plan,
    checkpoints: Checkpoints,
    tracker: Tracker,
    stopping: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Trains from `state.step` to `plan.steps`, each microbatch cut by rows over the mesh that the state lies on.

    Args:
        task: loss and metrics.
        optimizer: what turns a mean gradient into an update.
        state: where to start; donated.
        batches: from a step, the batches of that step and all later ones: this process's rows of them.
        validation: batches to measure the loss on at each study checkpoint, likewise.
        plan: when to end and to save.
        checkpoints: where to save.
        tracker: what is told of each step.
        stopping: whether to save and stop after the step in hand; with several processes all stop at one step.

    Raises:
        Interrupted: it was asked to stop, and all is saved.
        UserError: the loss or the gradient's norm of a step is not finite, and nothing of that step is kept; or a
            checkpoint could not be saved.
    """
    places: Any = jax.tree.map(lambda leaf: leaf.sharding, state)
    functions, mesh = compiled(task, optimizer, places), places.step.mesh
    start, saved_at, vote = int(state.step), plan.clock(), cluster.Vote(mesh)

    def study(step: int, params: PyTree) -> None:
        if validation is not None:
            held_out = (_placed(batch, mesh) for batch in validation())
            tracker.validated(step, _finite(step, _mean(task, functions, params, held_out), "validation "))

    def save(step: int, kind: Kind, state: TrainState, whole: bool) -> None:
        with jax.transfer_guard("allow"):  # Orbax's own
            moments = _optimizer_dict(state) if whole else None
            checkpoints.save(step, kind, state.params, moments, {"step": step})
        tracker.rest()

    previous: tuple[int, Sums, float] | None = None
    if plan.first and start == 0:
        study(0, state.params)
        save(0, "study", state, whole=False)
    with jax.transfer_guard("disallow"):
        for step, (batch, waited) in enumerate(_timed(batches(start)), start + 1):
            state, metrics = _updated(functions, state, _placed(batch, mesh))
            if previous:
                _report(tracker, *previous)
            previous = step, metrics, waited
            checkpoints.check()
            stop, late = vote(stopping(), plan.clock() - saved_at >= plan.recover_seconds)
            due = step % plan.save_every == 0 or step == plan.steps
            recovery = (stop or late) and step < plan.steps
            if due or recovery:
                _report(tracker, *previous)
                previous = None
                if due and not stop:  # one who asks to stop does not wait for a validation
                    study(step, state.params)
                save(step, "study" if due else "recovery", state, recovery)
                if recovery:
                    saved_at = plan.clock()
                    vote.forget()
            if stop and recovery:
                checkpoints.finish()
                raise Interrupted(f"stopped after step {step}, as asked; the same command goes on from there")
    checkpoints.finish()
    return state


def _placed(batch: Batch, mesh: Mesh) -> list[Microbatch]:
    """A batch on the mesh, out of this process's rows of each microbatch."""
    with jax.transfer_guard("allow"):  # this one is asked for
        return [jax.make_array_from_process_local_data(partition.rows(mesh), dict(part)) for part in batch]


def _updated(functions: "Compiled", state: TrainState, batch: list[Microbatch]) -> tuple[TrainState, Sums]:
    """The state after a batch, and the step's metrics."""
    scale = state.scale and state.scale.scale
    parts = (functions.gradient(state.params, microbatch, scale) for microbatch in batch)
    return functions.update(state, functools.reduce(functions.add, parts))


def resume(state: TrainState, checkpoints: Checkpoints, step: int) -> TrainState:
    """The state that was saved at `step`, placed as `state` is."""
    params = checkpoints.params(step, state.params)
    optimizer = checkpoints.optimizer(step, _optimizer_dict(state))
    done = jax.device_put(jnp.asarray(step, jnp.int32), state.step.sharding)
    moments, scale = _optimizer_from(state, optimizer)
    return TrainState(params, moments, done, scale)


class Compiled(NamedTuple):
    """The compiled functions of a training.

    Attributes:
        gradient: parameters, a microbatch and the loss scale, or None, to its Total.
        add: two totals to one; the first is donated.
        update: state and a batch's Total to the new state, the old one donated, and the step's metrics.
        measure: parameters and a microbatch to its sums alone.
    """

    gradient: Callable[[PyTree, Microbatch, Float[Array, ""] | None], Total]
    add: Callable[[Total, Total], Total]
    update: Callable[[TrainState, Total], tuple[TrainState, Sums]]
    measure: Callable[[PyTree, Microbatch], Sums]


def compiled(task: Task, optimizer: optax.GradientTransformation, places: TrainState) -> Compiled:
    """The functions of a training, compiled when first called: `gradient` once a microbatch shape, the rest once.

    Args:
        task: loss and metrics.
        optimizer: what turns a mean gradient into an update.
        places: where the state lies and stays, from `state_shardings`.
    """
    step: Any = places.step
    mesh: Mesh = step.mesh

    def gradient(params: PyTree, batch: Microbatch, scale: Float[Array, ""] | None) -> Total:
        def of_rows(params: PyTree, batch: Microbatch, scale: Float[Array, ""] | None) -> tuple[PyTree, Sums]:
            def scaled(params: PyTree) -> tuple[Float[Array, ""], Sums]:
                loss, sums = task.loss(params, batch)
                return (loss if scale is None else loss * scale), sums

            (_, sums), gradients = jax.value_and_grad(scaled, has_aux=True)(params)
            return partition.total(gradients, sums)

        return Total(*partition.on_mesh(of_rows, mesh, params, gradient=True)(params, batch, scale))

    def measure(params: PyTree, batch: Microbatch) -> Sums:
        def of_rows(params: PyTree, batch: Microbatch, _: None) -> Sums:
            return partition.total({}, task.loss(params, batch)[1])[1]

        return partition.on_mesh(of_rows, mesh, params, gradient=False)(params, batch, None)

    def add(total: Total, new: Total) -> Total:
        return jax.tree.map(jnp.add, total, new)

    def update(state: TrainState, total: Total) -> tuple[TrainState, Sums]:
        count = jnp.maximum(total.sums["weight"], 1.0) * (1.0 if state.scale is None else state.scale.scale)
        mean = jax.tree.map(lambda g: g / count, total.gradient)
        changes, moments = optimizer.update(mean, state.optimizer, state.params)
        work = {name: total.sums[name] for name in ("tokens", "flops")}
        metrics = {**task.metrics(total.sums), "gradient_norm": optax.tree.norm(mean), **work}
        new = TrainState(optax.apply_updates(state.params, changes), moments, state.step + 1)
        return (new, metrics) if state.scale is None else _unless_overflown(state, state.scale, new, metrics)

    updates = jax.jit(update, donate_argnums=0, out_shardings=(places, None))
    return Compiled(jax.jit(gradient), jax.jit(add, donate_argnums=0), updates, jax.jit(measure))


def _unless_overflown(old: TrainState, scale: LossScale, new: TrainState, metrics: Sums) -> tuple[TrainState, Sums]:
    """The new state, or where a gradient is not finite the old one with a step done and a smaller scale."""
    finite = jnp.isfinite(metrics["gradient_norm"]) & jnp.isfinite(metrics["loss"])
    params, moments = jax.tree.map(
        lambda a, b: jnp.where(finite, a, b), (new.params, new.optimizer), (old.params, old.optimizer)
    )
    after = precision.adjusted(scale, finite)
    told = {"loss_scale": scale.scale, "skipped": after.skipped, "overflow": 1.0 - finite}
    return TrainState(params, moments, new.step, after), {**metrics, **told}


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch, and the seconds that were waited for it."""
    asked = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - asked
        asked = time.perf_counter()


def _report(tracker: Tracker, step: int, metrics: Sums, waited: float) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()} | {"data_seconds": waited}
    if values.pop("overflow", 0.0) and values["loss_scale"] > 1:  # that update was left out; nothing of it is kept
        values = {name: value for name, value in values.items() if math.isfinite(value)}
    tracker.step(step, _finite(step, values))


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
    parts = (functions.measure(params, microbatch) for batch in batches for microbatch in batch)
    sums = functools.reduce(functools.partial(jax.tree.map, jnp.add), parts)
    return {name: float(value) for name, value in jax.device_get(jax.jit(task.metrics)(sums)).items()}


def _optimizer_dict(state: TrainState) -> PyTree:
    """The optimizer's state as plain nested dicts, for a checkpoint; in float16 with the loss scale."""
    moments: dict[str, Any] = flax.serialization.to_state_dict(state.optimizer)
    return moments if state.scale is None else {**moments, "loss_scale": state.scale._asdict()}


def _optimizer_from(state: TrainState, saved: dict[str, Any]) -> Any:
    """The optimizer's state and the loss scale out of what `_optimizer_dict` made."""
    moments = {name: part for name, part in saved.items() if name != "loss_scale"}
    scale = None if state.scale is None else LossScale(**saved["loss_scale"])
    return flax.serialization.from_state_dict(state.optimizer, moments), scale
