"""Read a YAML file into a msgspec struct that has a `format`."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from jaxtempl.config import parsing
from jaxtempl.errors import UserError

StructT = TypeVar("StructT", bound=msgspec.Struct)


def read_struct(
    path: Path, kind: type[StructT], newest: int, faults: Callable[[StructT], Iterable[str]], example: str
) -> StructT:
    """Read and check a file.

    Args:
        path: YAML file.
        kind: Struct of the file's keys.
        newest: Newest `format` that this release reads, and that of a file that states none.
        faults: Returns what is impossible in the values.
        example: Where the user finds an example, as the end of a sentence.

    Raises:
        UserError: The file is missing, newer than this release, of another form, or has a fault.
    """
    content = parsing.load(path)
    version = content.get("format", newest)
    if isinstance(version, int) and version > newest:
        raise UserError(f"{path} has format {version}; this release reads up to {newest}: update jaxtempl")
    try:
        value = msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}; {example}") from None
    if found := list(faults(value)):
        raise UserError(f"{path}: {'; '.join(found)}")
    return value
