"""Trainings of several real processes on one machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from children import environment

from jaxtempl.config.paths import ROOT

# Command prefix: no file may grow beyond 1 MB, which looks like a full disk to the checkpoint writer.
NO_ROOM = ("sh", "-c", 'ulimit -f 2048; exec "$@"', "sh")
LIMIT_SECONDS = 600.0  # generous, because the machine may be busy: tests wait for conditions


class Hosts:
    """The processes of one training, each with some fake devices; leaving the context kills those still running.

    Args:
        folder: Folder of their stderr files.
        count: Number of processes.
        flags: Command and flags of every process.
        devices: Fake devices of each process.
        extra_flags: One more flag of a process, by its index.
        prefix: Words before the command of a process, by its index.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        *flags: str,
        devices: int = 2,
        extra_flags: Mapping[int, str] = MappingProxyType({}),
        prefix: Mapping[int, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stderr = [folder / f"{os.urandom(4).hex()}.{index}" for index in range(count)]
        group = ["--coordinator=" + free_port(), f"--num_processes={count}"] if count > 1 else []
        self.processes: list[subprocess.Popen[bytes]] = []
        for index in range(count):
            process_id = [f"--process_id={index}"] if count > 1 else []
            command = [*prefix.get(index, ()), sys.executable, "-m", "jaxtempl", *flags, *group, *process_id]
            command += [extra_flags[index]] if index in extra_flags else []
            self.processes.append(self._start(command, self._stderr[index], devices))

    def _start(self, command: list[str], stderr: Path, devices: int) -> "subprocess.Popen[bytes]":
        with stderr.open("wb") as file:
            return subprocess.Popen(command, env=environment(devices), stdout=subprocess.DEVNULL, stderr=file)

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def codes(self) -> list[int]:
        """Return the exit codes once all processes have ended."""
        end = time.monotonic() + LIMIT_SECONDS
        return [process.wait(max(end - time.monotonic(), 0.01)) for process in self.processes]

    def stderr(self, index: int) -> str:
        """Return what a process has written to stderr."""
        return self._stderr[index].read_text()

    def signal(self, index: int, number: signal.Signals) -> None:
        """Send a signal to a process."""
        self.processes[index].send_signal(number)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; raise AssertionError if a process ends first."""
        end = time.monotonic() + LIMIT_SECONDS
        while not condition():
            ended = [i for i, process in enumerate(self.processes) if process.poll() is not None]
            assert not ended, self.stderr(ended[0])
            assert time.monotonic() < end
            time.sleep(0.05)


def free_port() -> str:
    """Return the address of a free local port."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def run_script(script: str) -> "subprocess.CompletedProcess[str]":
    """Run a Python script in its own process."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=LIMIT_SECONDS)
