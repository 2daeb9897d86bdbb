"""The accelerators that `bin/adapt --plan` knows: what each holds, and what an hour of it is taken to cost."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Device(NamedTuple):
    """One kind of accelerator.

    Attributes:
        kind: what JAX calls it, a key of `flops.PEAKS`.
        memory: bytes, as the vendor states them.
        price: dollars an hour, a round figure of renting one on demand in 2026; providers differ by 2 to 3 times.
        heads: least and greatest head_dim that flash attention takes there; others get XLA's.
        lanes: to which the device pads a head of fewer dims.
        slices: of TPUs, the grids that JAX names, by their number of chips.
    """

    kind: str
    memory: float
    price: float
    heads: tuple[int, int]
    lanes: int = 1
    slices: Mapping[int, str] = MappingProxyType({})


DEVICES = {
    "a10": Device("NVIDIA A10", 24e9, 1.0, (8, 128)),
    "a100-40": Device("NVIDIA A100", 40e9, 1.5, (8, 128)),
    "a100-80": Device("NVIDIA A100", 80e9, 2.0, (8, 128)),
    "h100": Device("NVIDIA H100", 80e9, 3.0, (8, 256)),
    "h200": Device("NVIDIA H200", 141e9, 4.0, (8, 256)),
    "v5e": Device(
        "TPU v5 lite",
        16e9,
        1.2,
        (64, 256),
        128,
        {n: f"v5e:{grid}" for n, grid in ((4, "2x2"), (8, "2x4"), (16, "4x4"), (32, "4x8"), (64, "8x8"))},
    ),
    "v5p": Device(
        "TPU v5",
        95e9,
        4.2,
        (64, 256),
        128,
        {n: f"v5p:{grid}" for n, grid in ((4, "2x2x1"), (8, "2x2x2"), (16, "2x2x4"), (32, "2x4x4"), (64, "4x4x4"))},
    ),
}
