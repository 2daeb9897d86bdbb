"""Trainings of several real processes on this machine, for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from jaxtempl.config.paths import ROOT

# Before a command: no file of it may grow beyond 1 MB, which is what a full disk is to the writer of a checkpoint.
NO_ROOM = ("sh", "-c", 'ulimit -f 2048; exec "$@"', "sh")


class Hosts:
    """Processes of one training, of some fake devices each; use as a context, which ends what is left of them."""

    def __init__(
        self,
        folder: Path,
        count: int,
        *flags: str,
        devices: int = 2,
        own: dict[int, str] | None = None,
        prefix: Mapping[int, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._errors = [folder / f"{os.urandom(4).hex()}.{index}" for index in range(count)]
        joins = ["--coordinator=" + free_port(), f"--num_processes={count}"] if count > 1 else []
        self.processes: list[subprocess.Popen[bytes]] = []
        for index in range(count):
            place = [f"--process_id={index}"] if count > 1 else []
            command = [*flags, *joins, *place, *filter(None, [(own or {}).get(index)])]
            self.processes.append(
                self._start(
                    [*prefix.get(index, ()), sys.executable, "-m", "jaxtempl", *command], self._errors[index], devices
                )
            )

    def _start(self, command: list[str], said: Path, devices: int) -> "subprocess.Popen[bytes]":
        xla = f"--xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": xla, "PYTHONPATH": str(ROOT)}
        with said.open("wb") as errors:
            return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def codes(self, seconds: float = 120.0) -> list[int]:
        """Exit codes, when all have ended."""
        end = time.monotonic() + seconds
        return [process.wait(max(end - time.monotonic(), 0.01)) for process in self.processes]

    def said(self, index: int) -> str:
        """What a process wrote to stderr."""
        return self._errors[index].read_text()

    def signal(self, index: int, number: signal.Signals) -> None:
        self.processes[index].send_signal(number)

    def wait_until(self, true: Callable[[], bool], seconds: float = 120.0) -> None:
        """Raises AssertionError when it does not come true or a process ends before."""
        end = time.monotonic() + seconds
        while not true():
            ended = [i for i, process in enumerate(self.processes) if process.poll() is not None]
            assert not ended, self.said(ended[0])
            assert time.monotonic() < end
            time.sleep(0.05)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"
