"""Estimate the minimum time of an answer on a device: the roofline (Williams et al., 2009) of the forward pass."""

from collections.abc import Mapping

from jaxtempl.config import sizes
from jaxtempl.config.fields import DeviceName
from jaxtempl.errors import UsageError
from jaxtempl.serve.schema import ModelAnswer
from jaxtempl.specs import architecture, flops
from jaxtempl.specs.accelerators import ACCELERATORS
from jaxtempl.specs.architecture import Architecture

# Bytes of a weight, by a bundle's dtype.
WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1, "tensorrt-int8": 1, "tensorrt-fp8": 1}


def minimum_latency(
    model: ModelAnswer, tokens: Mapping[int, int], device: DeviceName, operations: float
) -> dict[str, float] | None:
    """Return the minimum mean time of an answer: its operations, or one read of the weights where that takes longer.

    Args:
        model: The model that serves.
        tokens: Number of answers by the tokens of their window, which is padded to its bucket.
        device: Device that computes.
        operations: Operations per second, instead of a device; the memory bound is then left out.

    Returns:
        Milliseconds and the figures behind them; None if the device, the size or the dtype is unknown, or without
        answers.
    """
    size = WEIGHT_BYTES.get(model.dtype)
    shape = _architecture(model.size)
    if not tokens or size is None or shape is None or (device == "none" and not operations):
        return None
    # Against 2-byte weights, the peak of 4 bytes (TF32) is half, and that of 1 byte twice as high.
    speed = operations or ACCELERATORS[device].peak * 2 / size
    weights = size * (flops.parameter_count(shape, embeddings=False) + shape.hidden * model.slots)
    reading = 0.0 if operations else weights / ACCELERATORS[device].bandwidth
    needed = {length: _operations(shape, model, length) for length in tokens}
    total = sum(tokens.values())
    return {
        "ms": 1000 * sum(n * max(needed[length] / speed, reading) for length, n in tokens.items()) / total,
        "operations": sum(n * needed[length] for length, n in tokens.items()) / total,
        "operations_per_second": speed,
        "weight_bytes": weights,
        "reading_ms": 1000 * reading,
    }


def _architecture(size: str) -> Architecture | None:
    try:
        return architecture.architecture_from(sizes.read_size(size)["architecture"])
    except UsageError:  # not one of the published sizes
        return None


def _operations(shape: Architecture, model: ModelAnswer, length: int) -> float:
    """Return the operations of the forward pass: a third of a training step's."""
    padded = next((bucket for bucket in sorted(model.buckets) if bucket >= length), length)
    return flops.per_context(shape, padded, model.slots) / 3
