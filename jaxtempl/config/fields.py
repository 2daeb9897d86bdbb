"""How a field of a command's dataclass states its flag, its help and its bound."""

import dataclasses
from typing import Any, Literal

DeviceName = Literal["none", "a10", "a100-40", "a100-80", "h100", "h200", "v5e", "v5p"]


def option(default: Any, help: str, flag: str = "", least: int | None = None, told: bool = True, was: str = "") -> Any:
    """A field with a default, the line that `--help` shows for it, its flag if that is not its name, and its bound.

    One that is not `told` says nothing of a run, and `dump` leaves it out.
    """
    known = {"help": help, "flag": flag, "least": least, "was": was}
    metadata = {k: v for k, v in known.items() if v not in ("", None)}
    return dataclasses.field(default=default, metadata={**metadata, "told": told})


def argument(help: str) -> Any:
    """A field that is given by place, not by name."""
    return dataclasses.field(metadata={"help": help, "positional": True})
