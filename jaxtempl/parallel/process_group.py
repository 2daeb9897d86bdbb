"""The process group of a multi-host training: initialization, agreement, and a common end.

`join` is entered once, before anything touches a device. Under SLURM, Open MPI, GKE and on TPU pods JAX discovers the
other processes; elsewhere `--coordinator --num_processes --process_id` name them. The first process is the main one: it
alone prints, logs, and writes what belongs to no single process.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Integer

from jaxtempl.config.training import TrainConfig
from jaxtempl.errors import Interrupted, InterruptedEarly, UsageError, UserError, first_line
from jaxtempl.parallel.watchdog import Watchdog, exit_process, on_abort

START_SECONDS = 300  # until all processes have joined
BARRIER_SECONDS = 1800  # until the slowest process has written its part of a checkpoint
SHUTDOWN_SECONDS = 20
GRACE_SECONDS = 30  # beyond a heartbeat, until the watchdog of a busy host names the process that was lost
# Environment variables in which launchers state the number of processes; a job of one trains without a group.
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
TPU_CHIPS = ("/dev/accel0", "/dev/vfio/0")  # on a host of a TPU pod, whose metadata server knows the other hosts


@contextlib.contextmanager
def join(config: TrainConfig) -> Generator[None]:
    """Join the training's process group, if it has one, until the block ends.

    Raises:
        UsageError: Only some of the three flags are given.
        UserError: The other processes did not join, or they were started with different flags.
    """
    if not _has_group(config):
        yield
        return
    _initialize(config)
    watchdog = Watchdog(config.heartbeat_seconds)
    with _leave_together(watchdog, config.heartbeat_seconds):
        if not is_main():
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        check_agreement("settings", _shared_flags(config))
        yield


@contextlib.contextmanager
def _leave_together(watchdog: Watchdog, heartbeat: float) -> Generator[None]:
    """Shut down with the other processes at the end of the block; report a failure of this process to them."""
    try:
        yield
    except InterruptedEarly as stop:
        watchdog.report_failure(str(stop))
        raise
    except Interrupted:  # all processes stop at the same step
        _shut_down(watchdog)
        raise
    except BaseException as error:
        if _is_connection_error(error):
            time.sleep(heartbeat + GRACE_SECONDS)  # the watchdog ends this process once it knows which one is lost
        watchdog.report_failure(first_line(error))
        raise
    _shut_down(watchdog)


def _shut_down(watchdog: Watchdog) -> None:
    barrier("the end")
    watchdog.shut_down()


def _shared_flags(config: TrainConfig) -> dict[str, Any]:
    """Return the flags that must be equal in all processes: all except `process_id`."""
    return dataclasses.asdict(dataclasses.replace(config, process_id=0))


def _is_connection_error(error: BaseException) -> bool:
    """Return whether a computation failed because another process was lost."""
    words = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "Connection", "connection", "NCCL")
    return isinstance(error, jax.errors.JaxRuntimeError | TimeoutError) and any(word in str(error) for word in words)


def _has_group(config: TrainConfig) -> bool:
    """Return whether flags or a launcher name a group. Raises UsageError if only some of the flags are given."""
    given = {
        "coordinator": config.coordinator != "",
        "num_processes": config.num_processes > 0,
        "process_id": config.process_id >= 0,
    }
    missing = [name for name, is_given in given.items() if not is_given]
    if missing and len(missing) < len(given):
        raise UsageError(f"--{missing[0]} is missing; pass --coordinator, --num_processes and --process_id, or none")
    if not missing and config.process_id >= config.num_processes:
        raise UsageError(
            f"--process_id={config.process_id} of --num_processes={config.num_processes} is out of range; "
            "ids count from 0"
        )
    return not missing or _is_launched()


def _is_launched() -> bool:
    """Return whether a launcher started several processes; on a TPU host, only JAX can find out."""
    if any(int(os.environ.get(name) or 1) > 1 for name in LAUNCHERS):
        return True
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:
        return len(hosts.split(",")) > 1
    return any(Path(chip).exists() for chip in TPU_CHIPS) and importlib.util.find_spec("libtpu") is not None


def _initialize(config: TrainConfig) -> None:
    """Initialize `jax.distributed`. Raises UserError if the other processes do not join."""
    address = (
        (config.coordinator, config.num_processes, config.process_id) if config.coordinator else (None, None, None)
    )
    absent = f"the other processes did not join within {START_SECONDS} s; check --coordinator, and start all of them"
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM instead of us
    on_abort(lambda: exit_process(absent))  # JAX aborts if the main process does not join
    try:
        jax.distributed.initialize(
            *address,
            local_device_ids=_local_devices(),
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=math.ceil(3 * config.heartbeat_seconds),  # our watchdog is first, and names it
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except jax.errors.JaxRuntimeError:
        raise UserError(absent) from None
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this training cannot be discovered ({first_line(error)}); pass --coordinator, "
            "--num_processes and --process_id"
        ) from None


def _local_devices() -> list[int] | None:
    """Return [] for all visible devices; None if processes share the host, so that JAX gives each its own device."""
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    slurm = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(",")  # as in 8(x2),4
    tasks = {count.partition("(")[0] for count in slurm} | {os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")}
    has_one_visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").isdigit()
    return [] if tasks == {"1"} or has_one_visible else None


def is_main() -> bool:
    """Return whether this is the main process."""
    return jax.process_index() == 0


def all_gather_text(text: str) -> list[str]:
    """Return the text of every process, in process order. All processes must call it."""
    if jax.process_count() == 1:
        return [text]
    encoded = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(encoded)))
    padded = np.pad(encoded, (0, int(sizes.max()) - len(encoded)))
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def all_gather_interleaved(local: Integer[np.ndarray, " local"], total: int) -> Integer[np.ndarray, " total"]:
    """Gather `total` values of which process p of P holds those at positions p, p + P, p + 2 P, ..."""
    longest = -(-total // jax.process_count())
    rows = np.asarray(multihost_utils.process_allgather(np.pad(local, (0, longest - len(local)))))
    return rows.reshape(-1, longest).T.reshape(-1)[:total]


def barrier(name: str) -> None:
    """Block until all processes have reached the barrier; any thread may call it, with a name used once."""
    ocp.multihost.get_barrier_sync_fn()(key=f"jaxtempl {name}", timeout_ms=BARRIER_SECONDS * 1000)


def check_agreement(what: str, local: dict[str, Any]) -> None:
    """Raise UserError on every process if a value differs between a process and the main one."""
    main, *others = [json.loads(text) for text in all_gather_text(json.dumps(local, default=str))]
    for process, values in enumerate(others, 1):
        for key in {**main, **values}:
            if main.get(key) != values.get(key):
                difference = f"{key} is {main.get(key)} in process 0 and {values.get(key)} in process {process}"
                raise UserError(
                    f"the processes disagree about the {what}: {difference}; start all with the same command"
                )


def broadcast(text: str) -> str:
    """Return the main process's text on every process. All processes must call it."""
    return all_gather_text(text)[0]
