"""Training speed and peak memory on the CPU beside transformers with torch: `python -m bench.train`.

The 70m shape, 4 rows of 512 tokens, float32, random weights, the same batch and the same AdamW. Each measurement is a
process of its own, so that its peak of resident memory is its own; the two sides take turns.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench import common

SIZE, ROWS, LENGTH = "70m", 4, 512
ROUNDS, STEPS = 3, 4
SIDES = ("jaxtempl", "torch")


def jaxtempl_step(tokens: np.ndarray) -> Callable[[], float]:
    """One update by this project's own compiled functions."""
    import jax

    from jaxtempl import config, optim, partition, tasks, train
    from jaxtempl.models import build
    from jaxtempl.models.neox import Architecture
    from jaxtempl.partition import Shape

    architecture = Architecture(**config.size(SIZE)["architecture"])
    settings = config.AdaptConfig(rate=1e-3, decay=0.01)
    task = tasks.causal_lm(build.graphdef(architecture, architecture.vocabulary))
    optimizer = optim.adamw(settings, 1000)
    params, mesh = build.random_params(architecture, architecture.vocabulary, 0), partition.make_mesh(Shape(1, 1, 1))
    functions = train.compiled(task, optimizer, train.state_shardings(mesh, optimizer, params))
    holder = [train.initial_state(params, optimizer, mesh)]
    batch = jax.device_put({"tokens": tokens.astype(np.uint16), "segments": np.ones_like(tokens, np.uint16)})

    def step() -> float:
        holder[0], metrics = functions.update(holder[0], functions.gradient(holder[0].params, batch, None))
        return float(metrics["loss"])

    return step


def torch_step(tokens: np.ndarray) -> Callable[[], float]:
    """The same update by transformers and torch (sdpa attention, gradients clipped at 1)."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    from jaxtempl import config
    from jaxtempl.models import config_json
    from jaxtempl.models.neox import Architecture

    settings = config_json.hugging_face_config(Architecture(**config.size(SIZE)["architecture"]), "lm")
    model = AutoModelForCausalLM.from_config(GPTNeoXConfig(**settings), attn_implementation="sdpa")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    batch = torch.tensor(tokens, dtype=torch.long)

    def step() -> float:
        loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def child(side: str) -> None:
    """Measures one side and prints its seconds a step, losses and peak memory as JSON."""
    tokens = np.random.default_rng(0).integers(0, 50_000, (ROWS, LENGTH))
    step = {"jaxtempl": jaxtempl_step, "torch": torch_step}[side](tokens)
    losses, seconds = [step()], []  # the first step compiles
    for _ in range(STEPS):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "losses": losses, "peak_mb": peak}))


def measure(side: str) -> dict[str, Any]:
    """One process of one side, in the environment that `bin/` gives to training."""
    script = f'. bin/environment.sh; exec "$python" -m bench.train {side}'
    command = ["sh", "-c", script, "bin/bench"]  # the last is $0, by which the script finds the project
    found = subprocess.run(
        command, cwd=common.ROOT, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True
    )
    if found.returncode:
        raise SystemExit(found.stderr)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    """Takes turns and writes docs/benchmarks/train.{json,md}."""
    machine = common.machine(("jax", "flax", "optax", "torch", "transformers"))
    rounds = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side in SIDES:
            rounds[side].append(measure(side))
            print(side, rounds[side][-1], file=sys.stderr)
    speed = {
        side: ROWS * LENGTH / statistics.median(s for r in found for s in r["seconds"])
        for side, found in rounds.items()
    }
    peak = {side: statistics.median(r["peak_mb"] for r in found) for side, found in rounds.items()}
    ratio = {"speed": speed["jaxtempl"] / speed["torch"], "peak": peak["jaxtempl"] / peak["torch"]}
    results = {"machine": machine, "rounds": rounds, "tokens_per_second": speed, "peak_mb": peak, "ratio": ratio}
    common.write("train", results, page(machine, speed, peak, ratio))


def page(machine: dict[str, Any], speed: dict[str, float], peak: dict[str, float], ratio: dict[str, float]) -> str:
    """The results as Markdown."""
    lines = [f"| {side} | {speed[side]:,.0f} | {peak[side]:,.0f} |" for side in SIDES]
    return "\n".join(
        [
            "# Training on the CPU, beside transformers with torch",
            "",
            f"The {SIZE} shape, {ROWS} x {LENGTH} tokens a step, float32, AdamW. {ROUNDS} processes a side by turns,",
            f"{STEPS} timed steps each after the first; medians. `python -m bench.train` repeats it.",
            "",
            "| | tokens/s | peak resident MB |",
            "|---|---|---|",
            *lines,
            f"| **ratio** | **{ratio['speed']:.2f}** (1.0 or more is wanted) | **{ratio['peak']:.2f}** (1.0 or less) |",
            "",
            common.described(machine),
            "",
        ]
    )


if __name__ == "__main__":
    child(sys.argv[1]) if len(sys.argv) > 1 else main()
