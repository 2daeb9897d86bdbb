"""The gain and the cost of quantization: size, top-1 and latency of the quantized and the float networks."""

import dataclasses
import importlib.metadata
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from tqdm import tqdm

from converters.verify.verify import NetworkFunction, TokenIds
from jaxtempl.serve.inference import processor

ROUNDS = 11  # each calls every network once at every length


@dataclasses.dataclass(frozen=True)
class NetworkFigures:
    """The figures of one network.

    Attributes:
        dtype: Type of the computation.
        bytes: Size of model.onnx with its external data.
        top1: Share of hits on the gate's contexts.
        milliseconds: Median time of a call with one row, by length; empty for graphs made for other hardware.
    """

    dtype: str
    bytes: int
    top1: float
    milliseconds: Mapping[str, float]


def model_bytes(folder: Path) -> int:
    """Return the size of the model in a folder, with its external data."""
    return sum(path.stat().st_size for path in folder.glob("model.onnx*"))


def measure_latencies(
    networks: Mapping[str, NetworkFunction], lengths: Sequence[int], row: TokenIds, progress: bool = False
) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of a call with one row, by network and length.

    Calls of the networks are interleaved, after one warm-up round.

    Args:
        networks: Networks by name.
        lengths: Lengths in tokens.
        row: Token ids, repeated up to each length.
        progress: Whether to show a bar.
    """
    times: dict[str, dict[str, list[float]]] = {name: {str(length): [] for length in lengths} for name in networks}
    for _ in tqdm(range(ROUNDS + 1), desc="timing", unit=" rounds", disable=not progress):
        for length, (name, network) in itertools.product(lengths, networks.items()):
            times[name][str(length)].append(_milliseconds(network, np.resize(np.array(row, np.int32), (1, length))))
    return {
        name: {length: float(np.median(calls[1:])) for length, calls in by_length.items()}
        for name, by_length in times.items()
    }


def _milliseconds(network: NetworkFunction, ids: Int32[np.ndarray, "1 L"]) -> float:
    start = time.perf_counter()
    network(ids, np.array([ids.shape[1]], np.int32))
    return 1000 * (time.perf_counter() - start)


def machine() -> dict[str, Any]:
    """Return the machine of the measurements, with one thread per core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor.name(),
        "instruction_set": processor.instruction_set(),
        "threads": cores or 1,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "load": round(os.getloadavg()[0], 2),
    }


def format_table(networks: Sequence[NetworkFigures]) -> str:
    """Format the figures as a table in plain text."""
    lengths = list(networks[-1].milliseconds)
    header = [f"{'':13}", f"{'MB':>9}", f"{'top-1':>8}", *(f"{f'{length} tokens':>12}" for length in lengths)]
    rows = [
        [
            f"{network.dtype:13}",
            f"{network.bytes / 1e6:9,.1f}",
            f"{network.top1:8.2%}",
            *(f"{network.milliseconds[length]:9,.1f} ms" for length in lengths),
        ]
        for network in networks
    ]
    return "\n".join(" ".join(cells) for cells in [header, *rows])
