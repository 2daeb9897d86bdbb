"""Latency of a classifier on this machine's accelerator, compared with torch: `python -m bench.gpu --parts=latency`.

Random bfloat16 weights, bfloat16 computation, 512 tokens, one and eight rows. The sides are Flax under jit, and
transformers with torch: sdpa in eager mode, compiled, and compiled into CUDA graphs. Each side is a separate process; a
call ends when its logits are on the host.

This benchmark has not been run: it needs an NVIDIA GPU.
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

Call = Callable[[np.ndarray], np.ndarray]


def flax(size: str) -> tuple[Call, str]:
    """Return a call of Flax and the device."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxtempl.models import factory

    graphdef = factory.make_graphdef(steps.architecture(size), SLOTS, jnp.bfloat16)
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), factory.random_params(steps.architecture(size), SLOTS, SEED)
    )
    classify = jax.jit(lambda params, ids, lengths: nnx.merge(graphdef, params).classify(ids, lengths))

    def call_model(ids: np.ndarray) -> np.ndarray:
        return np.asarray(classify(params, ids, np.full(len(ids), ids.shape[1], np.int32)))

    return call_model, jax.local_devices()[0].device_kind


def torch(size: str, side: str) -> tuple[Call, str]:
    """Return a call of torch, as one of `SIDES`, and the device."""
    import torch
    from transformers import AutoModelForSequenceClassification, GPTNeoXConfig

    from jaxtempl.huggingface import config

    gpu = torch.cuda.is_available()
    fields: Any = config.hugging_face_config(steps.architecture(size), "template")
    neox_config: Any = GPTNeoXConfig(**fields, use_cache=False, pad_token_id=1)
    neox_config.num_labels = SLOTS
    with torch.device("cuda" if gpu else "cpu"):
        model = AutoModelForSequenceClassification.from_config(neox_config, attn_implementation="sdpa")
    model = model.to(torch.bfloat16).eval()
    call: Any = torch.compile(model, mode=MODES[side]) if side in MODES else model

    def call_model(ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return call(torch.from_numpy(ids.astype(np.int64)).to(model.device)).logits.float().cpu().numpy()

    return call_model, torch.cuda.get_device_name() if gpu else "cpu"


def child(side: str, size: str) -> dict[str, Any]:
    """Return the seconds of each call after the warm-up, by rows."""
    call_model, device = flax(size) if side == "flax" else torch(size, side)
    seconds: dict[str, list[float]] = {}
    for rows in ROWS:
        ids = np.random.default_rng(0).integers(2, 1000, (rows, LENGTH)).astype(np.int32)
        for _ in range(WARM):
            call_model(ids)
        seconds[str(rows)] = [_timed(call_model, ids) for _ in range(CALLS)]
    return {"device": device, "seconds": seconds}


def _timed(call_model: Call, ids: np.ndarray) -> float:
    start = time.perf_counter()
    call_model(ids)
    return time.perf_counter() - start


def measure(clock: Clock, saved: Callable[[], None]) -> None:
    """Measure all sizes and sides as far as time allows, and save each in docs/benchmarks/latency_gpu.{json,md}."""
    found: dict[str, Any] = {"machine": common.machine(PACKAGES), "rows": []}
    for size in SIZES:
        for side in SIDES:
            found["rows"].append({"size": size, "side": side, **_alone(side, size, clock)})
            common.save("latency_gpu", found, page(found))
            saved()


def _alone(side: str, size: str, clock: Clock) -> dict[str, Any]:
    """Return the measurement of a separate process, or its error."""
    try:
        return common.run_child("bench.latency_gpu", side, size, seconds=clock.left, **ENVIRONMENT)
    except ChildError as error:
        return {"error": str(error)[-300:]}


def page(found: dict[str, Any]) -> str:
    """Render the results as Markdown."""
    columns = ("size", "rows", "side", "ms", "roofline, ms", "times the roofline")
    return "\n".join(
        [
            "# Latency on an accelerator, compared with transformers and torch",
            "",
            f"{LENGTH} tokens, bfloat16, random weights; medians of {CALLS} calls after {WARM} warm-up calls. A call",
            "ends when its logits are on the host. The roofline is the time of all products of the model at the",
            "vendor's peak.",
            "Repeat with `python -m bench.gpu --parts=latency`.",
            "",
            f"| {' | '.join(columns)} |",
            "|---" * len(columns) + "|",
            *[line for row in found["rows"] for line in _lines(row)],
            "",
            common.describe(found["machine"]),
            "",
        ]
    )


def _lines(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [
            f"| {row['size']} | | {row['side']} | failed: {row['error'].splitlines()[-1][:80].replace('|', '/')} | | |"
        ]
    return [_line(row, int(rows), 1000 * statistics.median(calls)) for rows, calls in row["seconds"].items()]


def _line(row: dict[str, Any], rows: int, milliseconds: float) -> str:
    peak = flops.peak([row["device"]])
    floor = 1000 * rows * operations(row["size"]) / peak if peak else None
    ratios = [f"{floor:.2f}", f"{milliseconds / floor:.1f}"] if floor else ["", ""]
    return f"| {' | '.join([row['size'], str(rows), row['side'], f'{milliseconds:.2f}', *ratios])} |"


def operations(size: str) -> float:
    """Return the operations of one row, with the whole last block and no head: 335, 1,288 and 2,663 G."""
    a = steps.architecture(size)
    return LENGTH * (flops.per_token(a, LENGTH) / 3 - 2 * a.hidden * a.vocabulary)


if __name__ == "__main__":
    print(json.dumps(child(*sys.argv[1:])))
