"""Name the processor of this machine and the instructions that it multiplies 8-bit integers with."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Linux's names, best first. Those of VNNI add products of 8-bit integers in 32 bits. Older instructions of x86 add two
# products of a uint8 and an int8 in 16 bits, which saturate.
VNNI = ("amx_int8", "avx512_vnni", "avx_vnni")
OTHERS = ("avx512bw", "avx2", "sse4_1", "i8mm", "asimddp", "asimd")


def name() -> str:
    """Return the processor's name."""
    return _entry("model name") or platform.processor() or platform.machine()


def instruction_set() -> str:
    """Return the best instructions for products of 8-bit integers; the architecture's name if they are unknown."""
    flags = (_entry("flags") or _entry("Features")).split()
    return next((known for known in VNNI + OTHERS if known in flags), platform.machine())


def has_vnni() -> bool:
    """Return whether this processor is known to add products of 8-bit integers in 32 bits."""
    return instruction_set() in VNNI


def _entry(key: str) -> str:
    """Return the first processor's value of a key of /proc/cpuinfo; empty on other systems."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
