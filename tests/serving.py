"""A server for tests: the real command in its own process, on a free port."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.client import HTTPException as HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from jaxtempl.config.paths import ROOT

PATIENT = "--timeout_ms=20000"  # for tests that do not test deadlines and may share a few cores
MESSAGES = [
    {"role": "customer", "text": "hi"},
    {"role": "advocate", "text": "Hello!"},
    {"role": "customer", "text": "my card was stolen"},
]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A running `bin/serve`; `printed` and `log` collect its standard output and standard error."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process, self.url = process, f"http://127.0.0.1:{port}"
        self.printed, self.log = list[str](), list[str]()
        for lines, stream in ((self.printed, process.stdout), (self.log, process.stderr)):
            threading.Thread(target=lines.extend, args=(stream,), daemon=True).start()

    def wait(self, seconds: float = 30) -> "Server":
        """Wait until the server prints its address, which it does when it is ready."""
        end = time.monotonic() + seconds
        while not (found := re.search(r"at (http://\S+) \(console", "".join(self.printed))):
            assert self.process.poll() is None, "".join(self.printed + self.log)
            assert time.monotonic() < end, "".join(self.printed + self.log)
            time.sleep(0.01)
        self.url = found[1]
        return self

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def ask(self, path: str, body: Any = None, method: str = "", timeout: float = 20, **headers: str) -> Answer:
        """Send one request; a body that is not bytes is sent as JSON."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        asked = urllib.request.Request(self.url + path, raw, named, method=method or None)
        try:
            with urllib.request.urlopen(asked, timeout=timeout) as got:
                return Answer(got.status, dict(got.headers), got.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, dict(error.headers), error.read())

    def suggest(self, case: str = "c", **fields: Any) -> Answer:
        return self.ask("/v1/suggest", {"case_id": case, "messages": MESSAGES, **fields})

    def metric(self, line: str) -> float:
        """Return the value of a line of /metrics, or 0 if the line is absent."""
        text = self.ask("/metrics").body.decode()
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)


def command(bundle: Path, store: Path | str, *flags: str) -> list[str]:
    """Return the command of `bin/serve`, by default with a fake network; a store is a SQLite file or a URL."""
    url = store if isinstance(store, str) else f"sqlite:///{store}"
    given = [f"--bundle={bundle}", f"--store={url}", "--backend=fake", *flags]
    return [sys.executable, "-m", "jaxtempl", "serve", *given]


@contextmanager
def started(bundle: Path, store: Path | str, *flags: str, port: int = 0) -> Generator[Server]:
    """Yield a server that may not be ready yet, and kill it at the end if it still runs."""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command(bundle, store, *flags, f"--port={port}"), cwd=ROOT, env=environment, **pipes
    ) as process:
        try:
            yield Server(process, port)
        finally:
            process.kill()


@contextmanager
def served(bundle: Path, store: Path | str, *flags: str, port: int = 0) -> Generator[Server]:
    """Yield a server that is ready."""
    with started(bundle, store, *flags, port=port) as server:
        yield server.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
