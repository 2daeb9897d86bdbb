"""The structure of a JSON file without its values, as stored in tests/golden."""

from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"
NAMED = {"format", "kind", "phase", "size"}  # keys whose values are part of the format
VARYING = {"commit"}  # null outside a checkout
DIGESTS = {"files", "weights_sha256", "datasets", "real", "made"}  # objects whose keys are file names


def masked(value: Any, key: str = "") -> Any:
    """Keep the keys of objects, one element of lists, and the type of other values."""
    if isinstance(value, dict):
        return (
            {"*": masked(next(iter(value.values()), 0))}
            if key in DIGESTS
            else {k: masked(v, k) for k, v in value.items()}
        )
    if isinstance(value, list):
        return [masked(v) for v in value[:1]]
    return value if key in NAMED else "*" if key in VARYING else type(value).__name__
