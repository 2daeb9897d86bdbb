"""The processes of one training on several hosts: how they find each other, speak with one voice, and end together.

`joined` is entered once, by `main`, before anything touches a device. Under SLURM, Open MPI, GKE and on TPU pods JAX
finds the others by itself; elsewhere `--coordinator --num_processes --process_id` name them. The first process is the
main one: it alone prints, tracks and writes what is not its part of a checkpoint.
"""

import contextlib
import dataclasses
import importlib.util
import json
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
from jaxtempl.parallel.watchdog import SILENT_SECONDS, Watchdog, exit_process, on_abort

START_SECONDS = 300  # for all processes to come
BARRIER_SECONDS = 1800  # for the slowest process to write its part of a checkpoint
# What launchers say to each process of several; a job of one is trained as anywhere else.
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
TPU_CHIPS = ("/dev/accel0", "/dev/vfio/0")  # on a host of a TPU pod, whose metadata server knows the other hosts


@contextlib.contextmanager
def join(config: TrainConfig) -> Generator[None]:
    """Joins this process to the others of its training, if there are any, until the block ends.

    Raises:
        UsageError: only some of the three flags are given.
        UserError: the others did not come, one of them has gone, or they were not given the same flags.
    """
    if not _joins(config):
        yield
        return
    _initialize(config)
    watch = Watchdog()
    try:
        if not is_main():
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        check_agreement("settings", _flags(config))
        yield
    except InterruptedEarly as stop:
        watch.tell(str(stop))
        raise
    except Interrupted:
        _part(watch)
        raise
    except BaseException as error:
        if _lost(error):
            time.sleep(2 * SILENT_SECONDS)  # the watch ends this process as soon as it knows which one has gone
        watch.tell(first_line(error))
        raise
    _part(watch)


def _part(watch: Watchdog) -> None:
    """Leaves together with the other processes: training is done, or stopped on all of them."""
    barrier("the end")
    watch.end()


def _flags(config: TrainConfig) -> dict[str, Any]:
    """What all processes must be told alike; which one each is, is its own."""
    return dataclasses.asdict(dataclasses.replace(config, process_id=0))


def _lost(error: BaseException) -> bool:
    """Whether a computation failed for want of another process."""
    words = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "Connection", "connection", "NCCL")
    return isinstance(error, jax.errors.JaxRuntimeError | TimeoutError) and any(word in str(error) for word in words)


def _joins(config: TrainConfig) -> bool:
    given = {
        "coordinator": config.coordinator != "",
        "num_processes": config.num_processes > 0,
        "process_id": config.process_id >= 0,
    }
    missing = [name for name, there in given.items() if not there]
    if missing and len(missing) < len(given):
        raise UsageError(f"--{missing[0]} is missing; pass --coordinator, --num_processes and --process_id, or none")
    if not missing and config.process_id >= config.num_processes:
        raise UsageError(
            f"--process_id={config.process_id} of --num_processes={config.num_processes}; they count from 0"
        )
    return not missing or _launched()


def _launched() -> bool:
    """Whether a launcher started several processes; on a TPU host JAX alone can tell, and is asked."""
    if any(int(os.environ.get(name) or 1) > 1 for name in LAUNCHERS):
        return True
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:
        return len(hosts.split(",")) > 1
    return any(Path(chip).exists() for chip in TPU_CHIPS) and importlib.util.find_spec("libtpu") is not None


def _initialize(config: TrainConfig) -> None:
    given = (config.coordinator, config.num_processes, config.process_id) if config.coordinator else (None, None, None)
    alone = f"the other processes did not come within {START_SECONDS} s; check --coordinator, and start all of them"
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from us
    on_abort(lambda: exit_process(alone))  # JAX aborts where the main process does not come
    try:
        jax.distributed.initialize(
            *given,
            local_device_ids=_local_devices(),
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=3 * SILENT_SECONDS,  # ours is sooner, and says who
            shutdown_timeout_seconds=SILENT_SECONDS,
        )
    except jax.errors.JaxRuntimeError:
        raise UserError(alone) from None
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this training are not known: {first_line(error)}") from None


def _local_devices() -> list[int] | None:
    """All that this process sees, unless it shares its host: then JAX gives each the one of its place."""
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    slurm = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(",")  # as in 8(x2),4
    tasks = {count.partition("(")[0] for count in slurm} | {os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")}
    one_seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").isdigit()
    return [] if tasks == {"1"} or one_seen else None


def is_main() -> bool:
    """Whether this process is the one that speaks for all."""
    return jax.process_index() == 0


def all_gather_text(text: str) -> list[str]:
    """What each process says, in their order; all must call it."""
    if jax.process_count() == 1:
        return [text]
    said = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(said)))
    padded = np.pad(said, (0, int(sizes.max()) - len(said)))
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def all_gather_interleaved(mine: Integer[np.ndarray, " own"], total: int) -> Integer[np.ndarray, " total"]:
    """What each process knows of its share, every so many-th of `total` values from its own place on, put together."""
    most = -(-total // jax.process_count())
    rows = np.asarray(multihost_utils.process_allgather(np.pad(mine, (0, most - len(mine)))))
    return rows.reshape(-1, most).T.reshape(-1)[:total]


def barrier(name: str) -> None:
    """Goes on when every process has come here; any thread may call it, with a name used once."""
    ocp.multihost.get_barrier_sync_fn()(key=f"jaxtempl {name}", timeout_ms=BARRIER_SECONDS * 1000)


def check_agreement(what: str, mine: dict[str, Any]) -> None:
    """Raises UserError on every process when one has another value of something than the main one."""
    said = [json.loads(each) for each in all_gather_text(json.dumps(mine, default=str))]
    for process, theirs in enumerate(said):
        for key in {**said[0], **theirs}:
            if said[0].get(key) != theirs.get(key):
                told = f"{key} is {said[0].get(key)} in process 0 and {theirs.get(key)} in process {process}"
                raise UserError(f"the processes disagree about the {what}: {told}; start all with the same command")


def broadcast(text: str) -> str:
    """What the main process says, in all of them; all must call it."""
    return all_gather_text(text)[0]
