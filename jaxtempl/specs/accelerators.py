"""Accelerators that `--plan` knows: speed, memory, and an assumed price."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Accelerator(NamedTuple):
    """One kind of accelerator.

    Attributes:
        kind: Prefix of JAX's `device_kind`.
        peak: Dense bfloat16 operations a second, as the vendor states them.
        memory: Bytes of memory, as the vendor states them.
        bandwidth: Bytes a second of the memory, as the vendor states them.
        price: Dollars an hour, a round figure for renting one on demand in 2026; providers differ by 2 to 3 times.
        capability: NVIDIA's compute capability; 0 for a TPU.
        lanes: Multiple that the device pads a head's dims to.
        tpu_type: Accelerator type that the TPU's compiler expects; empty for a GPU.
        slices: JAX's topology name of a TPU slice by its number of chips; empty for a GPU.
    """

    kind: str
    peak: float
    memory: float
    bandwidth: float
    price: float
    capability: float = 0.0
    lanes: int = 1
    tpu_type: str = ""
    slices: Mapping[int, str] = MappingProxyType({})

    @property
    def platform(self) -> str:
        """JAX's name of the platform."""
        return "tpu" if self.slices else "gpu"


ACCELERATORS = {
    "a10": Accelerator("NVIDIA A10", 125e12, 24e9, 600e9, 1.0, 8.6),
    "a100-40": Accelerator("NVIDIA A100", 312e12, 40e9, 1555e9, 1.5, 8.0),
    "a100-80": Accelerator("NVIDIA A100", 312e12, 80e9, 2039e9, 2.0, 8.0),
    "h100": Accelerator("NVIDIA H100", 989e12, 80e9, 3350e9, 3.0, 9.0),
    "h200": Accelerator("NVIDIA H200", 989e12, 141e9, 4800e9, 4.0, 9.0),
    "v5e": Accelerator(
        "TPU v5 lite",
        197e12,
        16e9,
        819e9,
        1.2,
        lanes=128,
        tpu_type="v5litepod-8",
        slices={n: f"v5e:{grid}" for n, grid in ((4, "2x2"), (8, "2x4"), (16, "4x4"), (32, "4x8"), (64, "8x8"))},
    ),
    "v5p": Accelerator(
        "TPU v5",
        459e12,
        95e9,
        2765e9,
        4.2,
        lanes=128,
        tpu_type="v5p-8",
        slices={
            n: f"v5p:{grid}" for n, grid in ((4, "2x2x1"), (8, "2x2x2"), (16, "2x2x4"), (32, "2x4x4"), (64, "4x4x4"))
        },
    ),
}

# Peaks of devices whose names have another device's name as prefix.
VARIANT_PEAKS = {"NVIDIA A10G": 70e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12}
