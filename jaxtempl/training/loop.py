"""fit(): the one training loop.

A batch is a list of microbatches, whose gradients add up to one update. The metrics of a step are read only after the
next step is dispatched, so that the device never waits for the host; before a checkpoint, they are read first, so that
only a step with finite loss and gradient norm is saved. The transfer guard forbids any other transfer between host and
device.
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
        steps: Total number of updates.
        save_every: Updates between study checkpoints; the last step always gets one.
        recover_seconds: Minimum time between recovery checkpoints.
        first: Whether to validate and save the state before the first update.
        clock: Returns the current time in seconds; tests replace it.
    """

    steps: int
    save_every: int
    recover_seconds: float
    first: bool = False
    clock: Callable[[], float] = time.monotonic


def fit(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: Callable[[int], Iterator[HostBatch]],
    validation: Callable[[], Iterable[HostBatch]] | None,
    schedule: Schedule,
    checkpoints: Checkpoints,
    tracker: Tracker,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Train from `state.step` to `schedule.steps`, with microbatches sharded by rows over the state's mesh.

    Args:
        objective: Loss and metrics.
        optimizer: Gradient transformation of the update.
        state: Initial state; it is donated.
        batches: Returns the batches from a step on: this process's rows of them.
        validation: Returns the batches for the loss at each study checkpoint: this process's rows of them.
        schedule: When to end and to save.
        checkpoints: Destination of the checkpoints.
        tracker: Receives the metrics of each step.
        should_stop: Whether to save and stop after the current step; with several processes all stop at one step.

    Returns:
        The state after the last update.

    Raises:
        Interrupted: `should_stop` returned true, and the state is saved.
        UserError: The loss or the gradient norm of a step is not finite, and nothing of that step is saved; or a
            checkpoint could not be saved.
    """
    return _Fit(objective, optimizer, state, validation, schedule, checkpoints, tracker).run(
        state, batches, should_stop
    )


class _Fit:
    """The state of one call of `fit`, except the train state."""

    def __init__(
        self,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        state: TrainState,
        validation: Callable[[], Iterable[HostBatch]] | None,
        schedule: Schedule,
        checkpoints: Checkpoints,
        tracker: Tracker,
    ) -> None:
        shardings: Any = jax.tree.map(lambda leaf: leaf.sharding, state)
        self._objective, self._validation, self._schedule = objective, validation, schedule
        self._checkpoints, self._tracker = checkpoints, tracker
        self._functions = compile_step(objective, optimizer, shardings)
        self._mesh: Mesh = shardings.step.mesh
        self._any_process = AnyReduce(self._mesh)
        self._saved_at = schedule.clock()
        self._pending: tuple[int, Sums, float] | None = None  # a dispatched step's number, metrics and waiting time

    def run(
        self, state: TrainState, batches: Callable[[int], Iterator[HostBatch]], should_stop: Callable[[], bool]
    ) -> TrainState:
        start = int(state.step)
        if self._schedule.first and start == 0:
            self._validate(0, state.params)
            self._save(0, "study", state, with_optimizer=False)
        with jax.transfer_guard("disallow"):
            for step, (batch, waited) in enumerate(_timed(batches(start)), start + 1):
                state, metrics = run_update(self._functions, state, _put(batch, self._mesh))
                self._report_pending()
                self._pending = step, metrics, waited
                self._after_step(step, state, should_stop())
        self._checkpoints.wait()
        return state

    def _after_step(self, step: int, state: TrainState, stop: bool) -> None:
        """Save if the schedule or a stop requires it. Raises Interrupted after saving for a stop."""
        self._checkpoints.raise_if_failed()
        is_late = self._schedule.clock() - self._saved_at >= self._schedule.recover_seconds
        stop, is_late = self._any_process(stop, is_late)
        is_last = step == self._schedule.steps
        is_study = step % self._schedule.save_every == 0 or is_last
        is_recovery = (stop or is_late) and not is_last
        if is_study or is_recovery:
            self._report_pending()
            if is_study and not stop:  # a stop does not wait for a validation
                self._validate(step, state.params)
            self._save(step, "study" if is_study else "recovery", state, is_recovery)
        if is_recovery:
            self._saved_at = self._schedule.clock()
            self._any_process.reset()
        if stop and is_recovery:
            self._checkpoints.wait()
            raise Interrupted(f"stopped after step {step}; run the same command again to resume")

    def _report_pending(self) -> None:
        """Report the metrics of the dispatched step, if there is one, to the tracker."""
        if self._pending:
            _report(self._tracker, *self._pending)
        self._pending = None

    def _validate(self, step: int, params: PyTree) -> None:
        if self._validation is not None:
            held_out = (_put(batch, self._mesh) for batch in self._validation())
            means = _mean_metrics(self._objective, self._functions, params, held_out)
            self._tracker.log_validation(step, _check_finite(step, means, "validation "))

    def _save(self, step: int, kind: CheckpointKind, state: TrainState, with_optimizer: bool) -> None:
        with jax.transfer_guard("allow"):  # Orbax transfers
            moments = optimizer_dict(state) if with_optimizer else None
            self._checkpoints.save(step, kind, state.params, moments, {"step": step})
        self._tracker.pause()


def _put(batch: HostBatch, mesh: Mesh) -> list[DeviceMicrobatch]:
    """Put a batch on the mesh, from this process's rows of each microbatch."""
    with jax.transfer_guard("allow"):
        return [jax.make_array_from_process_local_data(rules.row_sharding(mesh), dict(rows)) for rows in batch]


def _timed(batches: Iterator[HostBatch]) -> Iterator[tuple[HostBatch, float]]:
    """Yield each batch and the seconds spent waiting for it."""
    start = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - start
        start = time.perf_counter()


def _report(tracker: Tracker, step: int, metrics: Sums, waited: float) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()} | {"data_seconds": waited}
    if values.pop("overflow", 0.0) and values["loss_scale"] > 1:  # the update was skipped, so its metrics may be NaN
        values = {name: value for name, value in values.items() if math.isfinite(value)}
    tracker.log_step(step, _check_finite(step, values))


def _check_finite(step: int, values: Mapping[str, float], prefix: str = "") -> Mapping[str, float]:
    """Return the metrics of a step. Raises UserError if one is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(
                f"{prefix}{name} of step {step} is {value}; nothing of that step was saved: "
                "train into another --out with a lower --learning_rate or another --precision"
            )
    return values


def _mean_metrics(
    objective: Objective, functions: CompiledStep, params: PyTree, batches: Iterable[list[DeviceMicrobatch]]
) -> dict[str, float]:
    parts = (functions.measure(params, microbatch) for batch in batches for microbatch in batch)
    sums = functools.reduce(functools.partial(jax.tree.map, jnp.add), parts)
    return {name: float(value) for name, value in jax.device_get(jax.jit(objective.metrics)(sums)).items()}
