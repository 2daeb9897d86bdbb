"""Shared parts of the benchmarks: the data folder, the description of the machine, and the writing of results."""

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from jaxtempl import files
from jaxtempl.serve.inference import processor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "benchmarks"


def data() -> Path:
    """Return the folder that JAXTEMPL_DATA names, with `star/`, `sgd/` and so on (see bench/data/README.md)."""
    folder = os.environ.get("JAXTEMPL_DATA")
    if not folder or not Path(folder).is_dir():
        raise SystemExit(
            "JAXTEMPL_DATA names no folder; set it to the data folder (bench/data/README.md says how to make one)"
        )
    return Path(folder)


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Return processor, cores, memory, system, and the versions of Python and of `packages`."""
    return {
        "processor": processor.name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "load_before": round(os.getloadavg()[0], 2),
    }


def describe(machine: dict[str, Any]) -> str:
    """Return the machine as one sentence of Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB of memory, "
        f"{machine['system']}, Python {machine['python']} ({versions}); load {machine['load_before']} before the run."
    )


class ChildError(Exception):
    """A child process ended with an error; the message is its stderr."""


class TookTooLongError(ChildError):
    """A child process exceeded its time limit and was killed."""


def run_child(module: str, *arguments: str, seconds: float | None = None, **environment: str) -> dict[str, Any]:
    """Return the last line that a child process prints, as JSON; see `output_of`."""
    return json.loads(output_of(module, *arguments, seconds=seconds, **environment).splitlines()[-1])


def output_of(module: str, *arguments: str, seconds: float | None = None, **environment: str) -> str:
    """Return the output of `python -m MODULE ARGUMENTS`, in the environment that `bin/` gives to training.

    Args:
        module: module to run in a child process.
        arguments: arguments of its command line.
        seconds: time limit, after which it is killed with all processes that it started.
        environment: variables to add to this process's environment.

    Raises:
        ChildError: the child ended with an error, or was killed.
    """
    process = subprocess.Popen(
        command(module, *arguments),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise TookTooLongError(f"took more than {seconds:.0f} seconds") from None
    if process.returncode:
        raise ChildError(error)
    return printed


def command(module: str, *arguments: str) -> list[str]:
    """Return the command of `python -m MODULE ARGUMENTS` in the environment that `bin/` gives to training, for ROOT."""
    script = '. bin/environment.sh; exec "$@"'  # finds the project by $0
    return ["sh", "-c", script, "bin/bench", sys.executable, "-m", module, *arguments]


def save(name: str, results: dict[str, Any], markdown: str) -> None:
    """Write `docs/benchmarks/<name>.json` and its page."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    files.write_json(RESULTS / f"{name}.json", results)
    with files.atomic_file(RESULTS / f"{name}.md") as temporary:
        temporary.write_text(markdown)


def write(name: str, results: dict[str, Any], markdown: str) -> None:
    """Write the results and print the page."""
    save(name, results, markdown)
    print(markdown)
