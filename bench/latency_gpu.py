"""Latency of a classifier on this machine's accelerator beside torch: `python -m bench.gpu --parts=latency`.

bfloat16 weights and computation, random, 512 tokens, one row and eight. Flax under jit; transformers with torch: sdpa
as it is, compiled, and compiled into CUDA graphs. Each side is a process of its own; a call ends when its logits are
here.

It has not been run: it wants an NVIDIA GPU.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench import common, steps
from bench.classifiers import SEED, SLOTS
from bench.common import ChildError
from bench.measured import ENVIRONMENT, Clock
from jaxtempl.specs import flops

SIZES, ROWS, LENGTH = ("410m", "1.4b", "2.8b"), (1, 8), 512
WARM, CALLS = 5, 30
SIDES = ("flax", "torch", "torch compiled", "torch graphs")
MODES = {"torch compiled": "default", "torch graphs": "reduce-overhead"}  # of torch.compile
PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers")

Ask = Callable[[np.ndarray], np.ndarray]


def flax(size: str) -> tuple[Ask, str]:
    """A call, and the device."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxtempl.models import factory

    graphdef = factory.make_graphdef(steps.architecture(size), SLOTS, jnp.bfloat16)
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), factory.random_params(steps.architecture(size), SLOTS, SEED)
    )
    classify = jax.jit(lambda params, ids, lengths: nnx.merge(graphdef, params).classify(ids, lengths))

    def ask(ids: np.ndarray) -> np.ndarray:
        return np.asarray(classify(params, ids, np.full(len(ids), ids.shape[1], np.int32)))

    return ask, jax.local_devices()[0].device_kind


def torch(size: str, side: str) -> tuple[Ask, str]:
    """The same of torch, as one of `SIDES`."""
    import torch
    from transformers import AutoModelForSequenceClassification, GPTNeoXConfig

    from jaxtempl.huggingface import config

    gpu = torch.cuda.is_available()
    told: Any = config.hugging_face_config(steps.architecture(size), "template")
    settings: Any = GPTNeoXConfig(**told, use_cache=False, pad_token_id=1)
    settings.num_labels = SLOTS
    with torch.device("cuda" if gpu else "cpu"):
        model = AutoModelForSequenceClassification.from_config(settings, attn_implementation="sdpa")
    model = model.to(torch.bfloat16).eval()
    call: Any = torch.compile(model, mode=MODES[side]) if side in MODES else model

    def ask(ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return call(torch.from_numpy(ids.astype(np.int64)).to(model.device)).logits.float().cpu().numpy()

    return ask, torch.cuda.get_device_name() if gpu else "cpu"


def child(side: str, size: str) -> dict[str, Any]:
    """Seconds of each call after the first ones, by rows."""
    ask, device = flax(size) if side == "flax" else torch(size, side)
    seconds: dict[str, list[float]] = {}
    for rows in ROWS:
        ids = np.random.default_rng(0).integers(2, 1000, (rows, LENGTH)).astype(np.int32)
        for _ in range(WARM):
            ask(ids)
        seconds[str(rows)] = [_timed(ask, ids) for _ in range(CALLS)]
    return {"device": device, "seconds": seconds}


def _timed(ask: Ask, ids: np.ndarray) -> float:
    start = time.perf_counter()
    ask(ids)
    return time.perf_counter() - start


def measure(clock: Clock, saved: Callable[[], None]) -> None:
    """All sizes and sides as far as time allows, each saved on docs/benchmarks/latency_gpu.{json,md} at once."""
    found: dict[str, Any] = {"machine": common.machine(PACKAGES), "rows": []}
    for size in SIZES:
        for side in SIDES:
            found["rows"].append({"size": size, "side": side, **_alone(side, size, clock)})
            common.save("latency_gpu", found, page(found))
            saved()


def _alone(side: str, size: str, clock: Clock) -> dict[str, Any]:
    """What a process of its own measures, or why it did not."""
    try:
        return common.alone("bench.latency_gpu", side, size, seconds=clock.left, **ENVIRONMENT)
    except ChildError as error:
        return {"error": str(error)[-300:]}


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    columns = ("size", "rows", "side", "ms", "floor, ms", "times the floor")
    return "\n".join(
        [
            "# Latency on an accelerator, beside transformers with torch",
            "",
            f"{LENGTH} tokens, bfloat16, random weights; medians of {CALLS} calls after {WARM}, each until its logits",
            "are here. The floor is of all products of the whole model at the peak that the device's vendor states.",
            "`python -m bench.gpu --parts=latency` repeats it.",
            "",
            f"| {' | '.join(columns)} |",
            "|---" * len(columns) + "|",
            *[line for row in found["rows"] for line in _lines(row)],
            "",
            common.described(found["machine"]),
            "",
        ]
    )


def _lines(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [
            f"| {row['size']} | | {row['side']} | failed: {row['error'].splitlines()[-1][:80].replace('|', '/')} | | |"
        ]
    return [_line(row, int(rows), 1000 * statistics.median(own)) for rows, own in row["seconds"].items()]


def _line(row: dict[str, Any], rows: int, milliseconds: float) -> str:
    peak = flops.peak([row["device"]])
    floor = 1000 * rows * operations(row["size"]) / peak if peak else None
    told = [f"{floor:.2f}", f"{milliseconds / floor:.1f}"] if floor else ["", ""]
    return f"| {' | '.join([row['size'], str(rows), row['side'], f'{milliseconds:.2f}', *told])} |"


def operations(size: str) -> float:
    """Of one row: 335, 1,288 and 2,663 G at 410m, 1.4b and 2.8b, the last block counted whole, no head."""
    a = steps.architecture(size)
    return LENGTH * (flops.per_token(a, LENGTH) / 3 - 2 * a.hidden * a.vocabulary)


if __name__ == "__main__":
    print(json.dumps(child(*sys.argv[1:])))
