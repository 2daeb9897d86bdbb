"""Declare a field of a command's dataclass: its flag, its help and its lower bound."""

import dataclasses
from typing import Any, Literal

DeviceName = Literal["none", "a10", "a100-40", "a100-80", "h100", "h200", "v5e", "v5p"]


def option(
    default: Any, help: str, flag: str = "", minimum: int | None = None, recorded: bool = True, was: str = ""
) -> Any:
    """Return a field with a default.

    Args:
        default: Value where neither a flag nor a file gives one.
        help: Line that `--help` shows.
        flag: Name of the flag, if it is not the field's.
        minimum: Lower bound of a number.
        recorded: Whether the value describes the run; `dump` leaves the others out.
        was: Name of the flag in an earlier release; using it is an error that states the new name.
    """
    given = {"help": help, "flag": flag, "minimum": minimum, "was": was}
    metadata = {key: value for key, value in given.items() if value not in ("", None)}
    return dataclasses.field(default=default, metadata={**metadata, "recorded": recorded})


def argument(help: str) -> Any:
    """Return a required field that is given by position."""
    return dataclasses.field(metadata={"help": help, "positional": True})
