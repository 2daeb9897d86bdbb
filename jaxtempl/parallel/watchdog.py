"""The watchdog of a multi-process training: if one process fails or stops responding, all exit and name it.

This is the one file that touches `jax._src`: JAX has no public handle on the key-value store that its processes share.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

FAREWELL_SECONDS = 3  # a failed process lives on for this long, so that the others read why it failed

Entries = Mapping[tuple[str, ...], str]  # (kind, process) -> value, from the key-value store


class Watchdog:
    """A thread that publishes this process's heartbeat, and ends the process when another one fails or is silent.

    Args:
        timeout: Seconds without a heartbeat after which a process counts as dead.
    """

    def __init__(self, timeout: float) -> None:
        from jax._src import distributed

        self._client: Any = distributed.global_state.client
        self._process = int(distributed.global_state.process_id)
        self._timeout = timeout
        self._ended = threading.Event()
        self._beats: dict[str, tuple[str, float]] = {}  # process -> last heartbeat, and when it was first seen
        self._hosts: dict[str, str] = {}
        self._failure = ""  # why this process ends
        self._client.key_value_set(f"jaxtempl/host/{self._process}", socket.gethostname())
        on_abort(self._report_abort)
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def report_failure(self, message: str) -> None:
        """Publish why this process ends, and give the others time to read it."""
        self._failure = message
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"jaxtempl/failed/{self._process}", message)
        time.sleep(FAREWELL_SECONDS)
        self._ended.set()

    def shut_down(self) -> None:
        """Leave the process group; every process does so at the end, or after stopping together."""
        self._ended.set()
        jax.distributed.shutdown()

    def _run(self) -> None:
        beats = 0
        while not self._ended.wait(min(1.0, self._timeout / 4)):
            beats += 1
            try:
                self._client.key_value_set(f"jaxtempl/beat/{self._process}", str(beats), allow_overwrite=True)
                entries = dict(self._client.key_value_dir_get("jaxtempl/"))
            except jax.errors.JaxRuntimeError:
                self._exit(self._lost("0", "no longer responds"))
                return
            self._check({tuple(key.split("/")[-2:]): value for key, value in entries.items()})

    def _check(self, entries: Entries) -> None:
        """Exit if any process has failed or is silent."""
        self._hosts |= {process: value for (kind, process), value in entries.items() if kind == "host"}
        for process, host in self._hosts.items():
            reason = entries.get(("failed", process))
            if reason is not None:
                self._exit(f"process {process} on {host} failed: {reason}")
            if self._is_silent(process, entries.get(("beat", process), "")):
                silence = f"has not responded for {self._timeout:g} seconds: it was killed, or its host is down"
                self._exit(self._lost(process, silence))

    def _is_silent(self, process: str, beat: str) -> bool:
        now = time.monotonic()
        if process not in self._beats or self._beats[process][0] != beat:
            self._beats[process] = (beat, now)
        return now - self._beats[process][1] > self._timeout

    def _lost(self, process: str, what: str) -> str:
        host = self._hosts.get(process, "another host")
        return f"process {process} on {host} {what}; run the same command again to resume"

    def _exit(self, reason: str) -> None:
        """End this process, whose main thread may wait for a collective that never completes."""
        if self._failure or self._ended.is_set():  # it is ending already
            return
        self._failure = reason  # printed again if JAX then notices the loss too, and aborts this process
        # The others read the reason through the main process, so that one stays longer.
        exit_process(reason, 2 * FAREWELL_SECONDS if self._process == 0 else 0.0)

    def _report_abort(self) -> None:
        """Print the reason when C++ aborts this process, as JAX does once the main process is lost."""
        crashed = "this process crashed, see the messages above"
        reason = crashed if self._process == 0 else self._lost("0", f"no longer responds, or {crashed}")
        exit_process("" if self._ended.is_set() else self._failure or reason)


def exit_process(reason: str, seconds: float = 0.0) -> None:
    """Print `reason`, wait, and end the process, whatever its threads are waiting for."""
    if reason:
        print(f"error: {reason}", file=sys.stderr, flush=True)
    time.sleep(seconds)
    os._exit(1)


_handlers: list[Any] = []  # keeps the callbacks alive: ctypes frees what nothing references


def on_abort(callback: Callable[[], None]) -> None:
    """Call `callback` when C++ aborts this process; Python's own handlers would wait for the blocked main thread."""
    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: callback()))
    ctypes.CDLL(None).signal(signal.SIGABRT, _handlers[-1])
