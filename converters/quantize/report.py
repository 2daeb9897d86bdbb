"""What quantisation gains and costs: size, top-1 and latency of a quantised network beside the float ones."""

import dataclasses
import importlib.metadata
import itertools
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from tqdm import tqdm

from converters.verify.verify import Network, Row

ROUNDS = 11  # of one call of every network at every length


@dataclasses.dataclass(frozen=True)
class NetworkFigures:
    """One network's figures.

    Attributes:
        dtype: what it computes in.
        bytes: of model.onnx with its external data.
        top1: share of hits on the gate's contexts.
        milliseconds: median of a call with one row of each length; none where they would say nothing.
    """

    dtype: str
    bytes: int
    top1: float
    milliseconds: Mapping[str, float]


def model_bytes(folder: Path) -> int:
    """Bytes of a model and its external data, which have their folder to themselves."""
    return sum(path.stat().st_size for path in folder.glob("model.onnx*"))


def measure_latencies(
    networks: Mapping[str, Network], lengths: Sequence[int], row: Row, progress: bool = False
) -> dict[str, dict[str, float]]:
    """Median milliseconds of a call with one row, by network and length; interleaved, after a round that warms up.

    Args:
        networks: by name.
        lengths: in tokens.
        row: token ids, repeated up to each length.
        progress: show a bar.
    """
    took: dict[str, dict[str, list[float]]] = {name: {str(length): [] for length in lengths} for name in networks}
    for _ in tqdm(range(ROUNDS + 1), desc="timing", unit=" rounds", disable=not progress):
        for length, (name, network) in itertools.product(lengths, networks.items()):
            took[name][str(length)].append(_milliseconds(network, np.resize(np.array(row, np.int32), (1, length))))
    warm = {name: {length: own[1:] for length, own in by.items()} for name, by in took.items()}
    return {name: {length: float(np.median(own)) for length, own in by.items()} for name, by in warm.items()}


def _milliseconds(network: Network, ids: Int32[np.ndarray, "1 L"]) -> float:
    start = time.perf_counter()
    network(ids, np.array([ids.shape[1]], np.int32))
    return 1000 * (time.perf_counter() - start)


def machine() -> dict[str, Any]:
    """What the figures are measured on, with a thread for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "threads": cores or 1,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "load": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def format_table(lines: Iterable[NetworkFigures]) -> str:
    """The figures as text."""
    shown = list(lines)
    lengths = list(shown[-1].milliseconds)
    heads = [f"{'':13}", f"{'MB':>9}", f"{'top-1':>8}", *(f"{f'{length} tokens':>12}" for length in lengths)]
    rows = [
        [
            f"{line.dtype:13}",
            f"{line.bytes / 1e6:9,.1f}",
            f"{line.top1:8.2%}",
            *(f"{line.milliseconds[length]:9,.1f} ms" for length in lengths),
        ]
        for line in shown
    ]
    return "\n".join(" ".join(cells) for cells in [heads, *rows])
