"""The least time that a device can take for one answer: the roofline (Williams et al., 2009) of the forward pass."""

from collections.abc import Mapping

from jaxtempl.config import sizes
from jaxtempl.config.fields import DeviceName
from jaxtempl.errors import UsageError
from jaxtempl.serve.schema import ModelAnswer
from jaxtempl.specs import architecture, flops
from jaxtempl.specs.accelerators import ACCELERATORS
from jaxtempl.specs.architecture import Architecture

WEIGHT_BYTES = {
    "fp32": 4,
    "fp16": 2,
    "int8": 1,
    "tensorrt-int8": 1,
    "tensorrt-fp8": 1,
}  # of a weight, by a bundle's dtype


def minimum_latency(
    model: ModelAnswer, tokens: Mapping[int, int], device: DeviceName, operations: float
) -> dict[str, float] | None:
    """What an answer takes at least, on average: its products, or reading the weights once where that is longer.

    Args:
        model: what serves.
        tokens: how many answers there were, by the tokens of their window; it is padded to its bucket.
        device: that it computes on.
        operations: a second, in place of a device; memory is then left out.

    Returns:
        Milliseconds with what they are made of; None where the device, the size or the dtype is not known, or there
        were no answers.
    """
    size = WEIGHT_BYTES.get(model.dtype)
    shape = _shape(model.size)
    if not tokens or size is None or shape is None or (device == "none" and not operations):
        return None
    speed = (
        operations or ACCELERATORS[device].peak * 2 / size
    )  # of 4 bytes (TF32) half as many as of 2, of 1 twice as many
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


def _shape(size: str) -> Architecture | None:
    try:
        return architecture.architecture_from(sizes.read_size(size)["architecture"])
    except UsageError:  # the model is of a size that is not one of ours
        return None


def _operations(shape: Architecture, model: ModelAnswer, length: int) -> float:
    """Of the forward pass, a third of a training's."""
    padded = next((bucket for bucket in sorted(model.buckets) if bucket >= length), length)
    return flops.per_context(shape, padded, model.slots) / 3
