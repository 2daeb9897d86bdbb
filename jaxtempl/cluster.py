"""The processes of one training on several hosts: how they find each other, speak with one voice, and end together.

`joined` is entered once, by `main`, before anything touches a device. Under SLURM, Open MPI, GKE and on TPU pods JAX
finds the others by itself; elsewhere `--coordinator --num_processes --process_id` name them. The first process is the
main one: it alone prints, tracks and writes what is not its part of a checkpoint.
"""

import contextlib
import ctypes
import dataclasses
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Integer

from jaxtempl import partition
from jaxtempl.config import TrainConfig
from jaxtempl.errors import UsageError, UserError, first_line
from jaxtempl.interrupt import Interrupted, TooEarly

SILENT_SECONDS = 20  # a process that says nothing for so long is dead, and the rest end
START_SECONDS = 300  # for all processes to come
BARRIER_SECONDS = 1800  # for the slowest process to write its part of a checkpoint
FAREWELL_SECONDS = 3  # that a failed process stays, so that the others hear why
# What launchers say to each process of several; a job of one is trained as anywhere else.
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
TPU_CHIPS = ("/dev/accel0", "/dev/vfio/0")  # on a host of a TPU pod, whose metadata server knows the other hosts


@contextlib.contextmanager
def joined(config: TrainConfig) -> Generator[None]:
    """Joins this process to the others of its training, if there are any, until the block ends.

    Raises:
        UsageError: only some of the three flags are given.
        UserError: the others did not come, one of them has gone, or they were not given the same flags.
    """
    if not _joins(config):
        yield
        return
    _initialize(config)
    watch = _Watch()
    try:
        if not is_main():
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        agree("settings", _flags(config))
        yield
    except TooEarly as stop:
        watch.tell(str(stop))
        raise
    except Interrupted:
        watch.end()
        raise
    except BaseException as error:
        if _lost(error):
            time.sleep(2 * SILENT_SECONDS)  # the watch ends this process as soon as it knows which one has gone
        watch.tell(first_line(error))
        raise
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
    _on_abort(lambda: _exit(alone))  # JAX aborts where the main process does not come
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


def gathered(text: str) -> list[str]:
    """What each process says, in their order; all must call it."""
    if jax.process_count() == 1:
        return [text]
    said = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(said)))
    padded = np.pad(said, (0, int(sizes.max()) - len(said)))
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def interleaved(mine: Integer[np.ndarray, " own"], total: int) -> Integer[np.ndarray, " total"]:
    """What each process knows of its share, every so many-th of `total` values from its own place on, put together."""
    most = -(-total // jax.process_count())
    rows = np.asarray(multihost_utils.process_allgather(np.pad(mine, (0, most - len(mine)))))
    return rows.reshape(-1, most).T.reshape(-1)[:total]


def wait_for_all(name: str) -> None:
    """Goes on when every process has come here; any thread may call it, with a name used once."""
    ocp.multihost.get_barrier_sync_fn()(key=f"jaxtempl {name}", timeout_ms=BARRIER_SECONDS * 1000)


def agree(what: str, mine: dict[str, Any]) -> None:
    """Raises UserError on every process when one has another value of something than the main one."""
    said = [json.loads(each) for each in gathered(json.dumps(mine, default=str))]
    for process, theirs in enumerate(said):
        for key in {**said[0], **theirs}:
            if said[0].get(key) != theirs.get(key):
                told = f"{key} is {said[0].get(key)} in process 0 and {theirs.get(key)} in process {process}"
                raise UserError(f"the processes disagree about the {what}: {told}; start all with the same command")


def told(text: str) -> str:
    """What the main process says, in all of them; all must call it."""
    return gathered(text)[0]


class Vote:
    """Whether any process wishes something; with several processes told one call late, so that none waits."""

    def __init__(self, mesh: Mesh) -> None:
        self._place = NamedSharding(mesh, P(partition.AXES))
        self._devices = mesh.size
        self._any = jax.jit(lambda wishes: jnp.any(wishes, axis=0), out_shardings=partition.whole(mesh))
        self._last: jax.Array | None = None

    def __call__(self, *wishes: bool) -> tuple[bool, ...]:
        """All processes call it equally often, with as many wishes."""
        if jax.process_count() == 1:
            return wishes
        shape = (self._devices, len(wishes))
        with jax.transfer_guard("allow"):
            votes = jax.make_array_from_callback(shape, self._place, lambda _: np.array([wishes]))
        last, self._last = self._last, self._any(votes)
        return (False,) * len(wishes) if last is None else tuple(map(bool, jax.device_get(last)))

    def forget(self) -> None:
        """Leaves out the wishes of the last call, which have been granted."""
        self._last = None


class _Watch:
    """A thread that tells the others that this process lives, and ends it when one of them has failed or is silent."""

    def __init__(self) -> None:
        from jax._src import distributed  # JAX has no public handle on the store that its processes share

        self._client: Any = distributed.global_state.client
        self._process = int(distributed.global_state.process_id)
        self._ended = threading.Event()
        self._heard: dict[str, tuple[str, float]] = {}
        self._hosts: dict[str, str] = {}
        self._own = ""  # why this process itself fails
        self._client.key_value_set(f"jaxtempl/host/{self._process}", socket.gethostname())
        _on_abort(self._aborted)
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def tell(self, message: str) -> None:
        """Tells the others why this process ends, and gives them time to hear it."""
        self._own = message
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"jaxtempl/failed/{self._process}", message)
        time.sleep(FAREWELL_SECONDS)
        self._ended.set()

    def end(self) -> None:
        """Parts from the others, who end as well: all is done, or stopped as one."""
        wait_for_all("the end")
        self._ended.set()
        jax.distributed.shutdown()

    def _run(self) -> None:
        beats = 0
        while not self._ended.wait(1.0):
            beats += 1
            try:
                self._client.key_value_set(f"jaxtempl/beat/{self._process}", str(beats), allow_overwrite=True)
                said = dict(self._client.key_value_dir_get("jaxtempl/"))
            except jax.errors.JaxRuntimeError:
                self._leave(self._gone("0", "is gone"))
                return
            self._listen({tuple(key.split("/")[-2:]): value for key, value in said.items()})

    def _listen(self, said: dict[tuple[str, ...], str]) -> None:
        self._hosts |= {process: value for (kind, process), value in said.items() if kind == "host"}
        for process in self._hosts:
            why = said.get(("failed", process))
            if why is not None:
                self._leave(f"process {process} on {self._hosts[process]} failed: {why}")
            if self._silent(process, said.get(("beat", process), "")):
                silent = f"has said nothing for {SILENT_SECONDS} seconds: it was killed, or its host"
                self._leave(self._gone(process, silent))

    def _silent(self, process: str, beat: str) -> bool:
        """Whether a process has said the same for too long."""
        now = time.monotonic()
        if process not in self._heard or self._heard[process][0] != beat:
            self._heard[process] = (beat, now)
        return now - self._heard[process][1] > SILENT_SECONDS

    def _gone(self, process: str, what: str) -> str:
        host = self._hosts.get(process, "another host")
        return f"process {process} on {host} {what}; the same command goes on where this was"

    def _leave(self, why: str) -> None:
        """Ends this process, whose main thread may wait for a collective that never comes."""
        if self._own or self._ended.is_set():  # it is ending already
            return
        _exit(why, 2 * FAREWELL_SECONDS if self._process == 0 else 0.0)  # the others hear of it through the main one

    def _aborted(self) -> None:
        """The last words when C++ ends this process, as JAX does once the main one is gone."""
        crashed = "this process crashed, as told above"
        gone = crashed if self._process == 0 else self._gone("0", f"is gone, or {crashed}")
        _exit("" if self._ended.is_set() else self._own or gone)


def _exit(why: str, seconds: float = 0.0) -> None:
    """Says why and after so many seconds ends the process, whatever its threads wait for."""
    if why:
        print(f"error: {why}", file=sys.stderr, flush=True)
    time.sleep(seconds)
    os._exit(1)


_handlers: list[Any] = []  # ctypes frees what nothing holds


def _on_abort(last: Callable[[], None]) -> None:
    """Calls `last` when C++ aborts this process; Python's own handlers wait for the main thread, which is stuck."""
    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: last()))
    ctypes.CDLL(None).signal(signal.SIGABRT, _handlers[-1])
