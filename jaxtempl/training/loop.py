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
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxtempl.errors import Interrupted, UserError
from jaxtempl.parallel import rules
from jaxtempl.parallel.any_reduce import AnyReduce
from jaxtempl.runs.checkpoint import CheckpointKind, Checkpoints
from jaxtempl.training.objectives import DeviceMicrobatch, HostBatch, Objective, Sums
from jaxtempl.training.state import TrainState, optimizer_dict
from jaxtempl.training.step import CompiledStep, compile_step, run_update
from jaxtempl.training.tracker import Tracker


@dataclasses.dataclass(frozen=True)
class Schedule:
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


def fit(
    task: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: Callable[[int], Iterator[HostBatch]],
    validation: Callable[[], Iterable[HostBatch]] | None,
    plan: Schedule,
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
    functions, mesh = compile_step(task, optimizer, places), places.step.mesh
    start, saved_at, vote = int(state.step), plan.clock(), AnyReduce(mesh)

    def study(step: int, params: PyTree) -> None:
        if validation is not None:
            held_out = (_placed(batch, mesh) for batch in validation())
            tracker.log_validation(step, _finite(step, _mean(task, functions, params, held_out), "validation "))

    def save(step: int, kind: CheckpointKind, state: TrainState, whole: bool) -> None:
        with jax.transfer_guard("allow"):  # Orbax's own
            moments = optimizer_dict(state) if whole else None
            checkpoints.save(step, kind, state.params, moments, {"step": step})
        tracker.pause()

    previous: tuple[int, Sums, float] | None = None
    if plan.first and start == 0:
        study(0, state.params)
        save(0, "study", state, whole=False)
    with jax.transfer_guard("disallow"):
        for step, (batch, waited) in enumerate(_timed(batches(start)), start + 1):
            state, metrics = run_update(functions, state, _placed(batch, mesh))
            if previous:
                _report(tracker, *previous)
            previous = step, metrics, waited
            checkpoints.raise_if_failed()
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
                checkpoints.wait()
                raise Interrupted(f"stopped after step {step}, as asked; the same command goes on from there")
    checkpoints.wait()
    return state


def _placed(batch: HostBatch, mesh: Mesh) -> list[DeviceMicrobatch]:
    """A batch on the mesh, out of this process's rows of each microbatch."""
    with jax.transfer_guard("allow"):  # this one is asked for
        return [jax.make_array_from_process_local_data(rules.row_sharding(mesh), dict(part)) for part in batch]


def _timed(batches: Iterator[HostBatch]) -> Iterator[tuple[HostBatch, float]]:
    """Each batch, and the seconds that were waited for it."""
    asked = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - asked
        asked = time.perf_counter()


def _report(tracker: Tracker, step: int, metrics: Sums, waited: float) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()} | {"data_seconds": waited}
    if values.pop("overflow", 0.0) and values["loss_scale"] > 1:  # that update was left out; nothing of it is kept
        values = {name: value for name, value in values.items() if math.isfinite(value)}
    tracker.log_step(step, _finite(step, values))


def _finite(step: int, values: Mapping[str, float], what: str = "") -> Mapping[str, float]:
    """The metrics of a step, which must be numbers."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(
                f"{what}{name} of step {step} is {value}; nothing of that step was saved: "
                "train into another --out with a lower --learning_rate or another --precision"
            )
    return values


def _mean(task: Objective, functions: CompiledStep, params: PyTree, batches: Iterable[HostBatch]) -> dict[str, float]:
    parts = (functions.measure(params, microbatch) for batch in batches for microbatch in batch)
    sums = functools.reduce(functools.partial(jax.tree.map, jnp.add), parts)
    return {name: float(value) for name, value in jax.device_get(jax.jit(task.metrics)(sums)).items()}
