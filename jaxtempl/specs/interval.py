"""A value with its confidence interval, and the one way that both are written."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

UNDEFINED = "–"  # noqa: RUF001  (shown for a value that is not a number)


class Interval(NamedTuple):
    """A value with the bounds of its 95 % confidence interval; NaN where it is undefined."""

    value: float
    low: float
    high: float

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Interval":
        """Return the interval of a JSON object `{"value", "low", "high"}`, in which null stands for NaN."""
        return cls(*(math.nan if entry[name] is None else float(entry[name]) for name in cls._fields))

    def bounds(self, spec: str = ".3f") -> str:
        """Return `[low, high]`, each number formatted by `spec`."""
        return f"[{format_number(self.low, spec)}, {format_number(self.high, spec)}]"

    def __format__(self, spec: str) -> str:
        """Return `value [low, high]`, each number formatted by `spec` (default: three decimals)."""
        return f"{format_number(self.value, spec or '.3f')} {self.bounds(spec or '.3f')}"


def format_number(value: float, spec: str) -> str:
    """Format a number, or return a dash for NaN."""
    return UNDEFINED if math.isnan(value) else format(value, spec)
