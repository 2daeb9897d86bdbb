"""The watchdog of a training of several processes: if one fails or stops responding, all exit and report which one.

This is the one file that touches `jax._src`: JAX has no public handle on the store that its processes share.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

SILENT_SECONDS = 20  # a process that says nothing for so long is dead, and the rest end
FAREWELL_SECONDS = 3  # that a failed process stays, so that the others hear why


class Watchdog:
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
        on_abort(self._aborted)
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
        exit_process(
            why, 2 * FAREWELL_SECONDS if self._process == 0 else 0.0
        )  # the others hear of it through the main one

    def _aborted(self) -> None:
        """The last words when C++ ends this process, as JAX does once the main one is gone."""
        crashed = "this process crashed, as told above"
        gone = crashed if self._process == 0 else self._gone("0", f"is gone, or {crashed}")
        exit_process("" if self._ended.is_set() else self._own or gone)


def exit_process(why: str, seconds: float = 0.0) -> None:
    """Says why and after so many seconds ends the process, whatever its threads wait for."""
    if why:
        print(f"error: {why}", file=sys.stderr, flush=True)
    time.sleep(seconds)
    os._exit(1)


_handlers: list[Any] = []  # ctypes frees what nothing holds


def on_abort(last: Callable[[], None]) -> None:
    """Calls `last` when C++ aborts this process; Python's own handlers wait for the main thread, which is stuck."""
    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: last()))
    ctypes.CDLL(None).signal(signal.SIGABRT, _handlers[-1])
