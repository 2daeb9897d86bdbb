"""Run the server and the load test for benchmarks, each in its own process and on given cores."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench import common

TOKEN = "admin"  # the token of /admin/


class Server:
    """`bin/serve`, ready.

    Attributes:
        url: where it is.
        process: it.
    """

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process, self.url = process, url

    def post(self, path: str, value: Any = None) -> Any:
        """Return the answer of a route to JSON; raises urllib's errors."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        request = urllib.request.Request(self.url + path, json.dumps(value).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as got:
            return json.loads(got.read())

    def metrics(self) -> dict[str, float]:
        """Every number of /metrics by its line's name and labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as got:
            lines = got.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    @property
    def memory(self) -> float:
        """Resident MB."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6


def pinned(cores: Collection[int], command: list[str]) -> list[str]:
    """A command that runs on these cores alone."""
    return ["taskset", "--cpu-list", ",".join(map(str, sorted(cores))), *command]


@contextmanager
def served(bundle: Path, folder: Path, *flags: str, cores: Collection[int] = (), port: int = 0) -> Generator[Server]:
    """A server of a bundle, ended by SIGTERM; its log and its store go to `folder`."""
    tokens = folder / "admin"
    tokens.write_text(f"{TOKEN}\n")
    given = [f"--bundle={bundle}", f"--store=sqlite:///{folder}/events.sqlite", f"--admin_tokens={tokens}"]
    command = common.command("jaxtempl", "serve", *given, f"--port={port}", *flags)
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            pinned(cores or os.sched_getaffinity(0), command), cwd=common.ROOT, stdout=subprocess.PIPE, stderr=log,
            text=True,
        )  # fmt: skip
    assert process.stdout
    try:
        found = next((found for line in process.stdout if (found := re.search(r"at (http://\S+) \(", line))), None)
        if not found:
            raise SystemExit(f"the server did not start: {(folder / 'log').read_text()[-500:]}")
        yield Server(process, found[1])
    finally:
        process.terminate()
        process.wait(60)


def load(server: Server, cases: Path, out: Path, *flags: str, cores: Collection[int] = ()) -> dict[str, Any]:
    """Return the report of `bin/loadtest`; its progress goes to standard error."""
    command = [sys.executable, "-m", "jaxtempl", "loadtest", f"--url={server.url}", f"--cases={cases}", f"--out={out}"]
    environment = {**os.environ, "PYTHONPATH": str(common.ROOT)}
    subprocess.run(
        pinned(cores or os.sched_getaffinity(0), [*command, "--overwrite", *flags]),
        check=True, env=environment, stdout=sys.stderr,
    )  # fmt: skip
    return json.loads((out / "report.json").read_text())
