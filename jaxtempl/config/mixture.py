"""Parse the datasets and weights of `--data`."""

from pathlib import Path

from jaxtempl.config.paths import expand_home, split_list
from jaxtempl.errors import UsageError


def parse_mixture(data: str) -> list[tuple[Path, float | None]]:
    """Return the folders and weights of `DIR[:WEIGHT],...`; a weight is None where it is not given.

    Raises:
        UsageError: A weight is not a positive number, or only some folders have one.
    """
    parts = [part.rpartition(":") if ":" in part else (part, "", "") for part in split_list(data) if part]
    pairs = [(Path(expand_home(folder)), _weight(weight, data) if colon else None) for folder, colon, weight in parts]
    if not pairs or len({weight is None for _, weight in pairs}) > 1:
        raise UsageError(f"--data={data!r}: name folders as DIR,DIR or all with weights as DIR:WEIGHT,DIR:WEIGHT")
    return pairs


def _weight(text: str, data: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not weight > 0:
        raise UsageError(f"--data={data!r}: weight {text!r} is not a number above 0")
    return weight
