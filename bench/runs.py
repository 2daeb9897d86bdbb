"""Runs of the project's commands, as benchmarks make and read them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from bench import common
from jaxtempl.runs.run import Run


def command(name: str, *flags: str, cache: Path, core: int | None = None) -> None:
    """Run one of the project's commands, without its output.

    Args:
        name: name of the command in `bin/`.
        flags: flags of the command.
        cache: folder of compiled programs, which runs of the same shapes share.
        core: core that the command is bound to; None leaves it all.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    print(f"$ bin/{name} {' '.join(flags)}", flush=True)
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache.resolve())}
    program = [*pinned, str(common.ROOT / "bin" / name), *flags]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL, env=environment)


def evaluate(run: Path | str, data: Path, out: Path, *flags: str, cache: Path, core: int | None = None) -> Any:
    """Return the report of a run on a dataset, which is evaluated unless `out` has one."""
    if not (out / "report.json").exists():
        command("evaluate", f"--run={run}", f"--data={data}", f"--out={out}", *flags, cache=cache, core=core)
    return json.loads((out / "report.json").read_text())


def steps(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of each update of a run."""
    return [line for line in Run(folder).metrics() if "seconds" in line]


def seconds(folder: Path) -> float:
    """Return the seconds of a run's training alone."""
    return sum(line["seconds"] for line in steps(folder))
