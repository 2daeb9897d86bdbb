"""Kill a training at random instants and check that nothing is lost: `python -m bench.kill`.

A training that saves as often as it can is killed (SIGKILL) 100 times, each time a random fraction of a second after it
has resumed, and restarted by the same command. The files on disk show the phase in which it died. Every start must load
the newest complete checkpoint, and the final parameters must equal those of an uninterrupted training, bit for bit.
"""

import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bench import common
from jaxtempl import files
from jaxtempl.config.data import PrepareConfig
from jaxtempl.prepare import pipeline
from jaxtempl.runs.checkpoint import SUMS_FOLDER
from jaxtempl.runs.run import Run
from jaxtempl.synthetic import generator

KILLS, STEPS, SEED = 100, 400, 0
MAX_SECONDS, MAX_STEPS = 0.6, 3.0  # from the first step of a life to its end; the longer one counts
PHASES = ("training", "writing", "committing")


def dataset(folder: Path) -> Path:
    """Prepare a small dataset from the embedded sample."""
    generator.write(folder / "sample", 40)
    made = (str(folder / "sample" / "transcripts.jsonl.gz"),)
    pipeline.run(PrepareConfig(transcripts=made, size="nano", length=64, out=folder / "data"))
    return folder / "data"


def start(data: Path, out: Path, steps: int) -> "subprocess.Popen[str]":
    """Start one life of the training, which prints where it resumes."""
    flags = [
        "--size=nano",
        f"--data={data}",
        f"--out={out}",
        "--batch_size=2",
        f"--steps={steps}",
        "--recover_minutes=0",
    ]
    command = [sys.executable, "-u", "-m", "jaxtempl", "adapt", *flags, f"--save_every={steps}"]
    environment = {**os.environ, "PYTHONPATH": str(common.ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(data: Path, out: Path, steps: int) -> None:
    """Train to the end; exit if that fails."""
    output, errors = start(data, out, steps).communicate()
    if "is complete at step" not in output:
        sys.exit(f"the training did not finish: {errors}")


def longest(whole: Path) -> float:
    """Return the maximum seconds of a life after its first step, by the speed of an uninterrupted run."""
    first, *others = [line for line in Run(whole).metrics() if "loss" in line]
    trained = first["seconds"] + sum(line["seconds"] for line in others)
    elapsed = trained / others[-1]["training_share"] - first["seconds"]
    return max(MAX_SECONDS, MAX_STEPS * elapsed / len(others))


def kill(data: Path, out: Path, steps: int, wait: float) -> dict[str, Any]:
    """Start a life and kill it `wait` seconds after its first step."""
    whole = newest(out)
    before = metrics(out)
    process = start(data, out, steps)
    # Wait for a new step in the metrics, which the start truncates to the step that it resumes from.
    while (metrics(out) == before or max(read_losses(out), default=0) <= (whole or 0)) and process.poll() is None:
        time.sleep(0.002)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    if process.returncode != -signal.SIGKILL:
        sys.exit(f"the training ended by itself with {process.returncode} before it was killed: {output}")
    loaded = next((line.rpartition("@")[2] for line in output.splitlines() if line.startswith("resuming from")), None)
    return {"newest_whole": whole, "loaded": loaded and int(loaded), **phase(out)}


def newest(out: Path) -> int | None:
    """Return the newest checkpoint on disk with a name, a manifest, and optimizer state."""
    named = [path for path in (out / "checkpoints").glob("[0-9]*") if (path / "manifest.json").exists()]
    return max((int(path.name) for path in named if (path / "optimizer").exists()), default=None)


def metrics(out: Path) -> int:
    """Return the inode of the metrics file, which every start replaces."""
    path = out / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else 0


def read_losses(out: Path) -> dict[int, float]:
    """Return the training loss of each step that a run has written so far."""
    records = files.read_lines(out / "metrics.jsonl")
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def phase(out: Path) -> dict[str, Any]:
    """Return the phase in which a training died, by its files: none, a part of a checkpoint, or all of one."""
    partial = sorted((out / "checkpoints").glob(".*.partial*"))
    if not partial:
        return {"phase": "training", "step": max(read_losses(out), default=0)}
    committing = any((path / SUMS_FOLDER).exists() or (path / "manifest.json").exists() for path in partial)
    return {"phase": "committing" if committing else "writing", "step": int(partial[-1].name.split(".")[1])}


def same(one: Path, other: Path, step: int) -> bool:
    """Return whether all parameters are equal bit for bit."""
    trees = [Run(folder).params(step) for folder in (one, other)]
    return all(map(np.array_equal, *map(jax.tree.leaves, trees)))


def measure(folder: Path, kills: int, steps: int, seed: int) -> dict[str, Any]:
    """Run the whole experiment in a folder; exit if a start did not load the newest complete checkpoint."""
    data, choose = dataset(folder), random.Random(seed)
    finish(data, folder / "whole", steps)
    lives, limit = [], longest(folder / "whole")
    for number in range(kills):
        lives.append(kill(data, folder / "killed", steps, choose.uniform(0, limit)))
        print(f"kill {number + 1} of {kills}: {lives[-1]}", file=sys.stderr, flush=True)
        if lives[-1]["loaded"] != lives[-1]["newest_whole"]:
            sys.exit(f"life {number + 1} did not load the newest complete checkpoint: {lives[-1]}")
    finish(data, folder / "killed", steps)
    counts = collections.Counter(life["phase"] for life in lives)
    equal = same(folder / "whole", folder / "killed", steps)
    return {"kills": lives, "phases": {name: counts[name] for name in PHASES}, "steps": steps, "same_bits": equal}


def page(results: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    counts = results["phases"]
    saving = counts["writing"] + counts["committing"]
    return "\n".join(
        [
            "# Resuming after SIGKILL",
            "",
            f"`python -m bench.kill` kills a training of nano {len(results['kills'])} times with SIGKILL. The training "
            f"has {results['steps']} steps and saves continuously.",
            "",
            "| phase at the kill | kills |",
            "|---|---|",
            *[f"| {name} | {counts[name]} |" for name in PHASES],
            "",
            f"{saving} kills came between the start of a save and its commit (target: 50 or more). Every start "
            "loaded the newest",
            "complete checkpoint automatically. The final parameters are "
            + ("**bit for bit equal** to" if results["same_bits"] else "**NOT equal** to")
            + " those of an uninterrupted training.",
            "",
            common.describe(results["machine"]),
            "",
        ]
    )


def main() -> None:
    """Write docs/benchmarks/kill.json and .md."""
    machine = common.machine(("jax", "flax", "optax", "orbax-checkpoint"))
    with tempfile.TemporaryDirectory() as folder:
        results = {"machine": machine, **measure(Path(folder), KILLS, STEPS, SEED)}
    common.write("kill", results, page(results))
    if not results["same_bits"] or results["phases"]["training"] > KILLS / 2:
        sys.exit("the parameters differ, or too few kills came during a save")


if __name__ == "__main__":
    main()
