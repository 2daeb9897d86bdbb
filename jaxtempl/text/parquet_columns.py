"""Choose the columns of a Parquet file that cases and documents need.

Other columns are never decoded: Python may not hold their values (dates, time zones, invalid UTF-8).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from jaxtempl.text.cases import KNOWN_VALUES

# The needed columns; of a list of structs, the needed fields. A column without fields is read whole.
Columns = Mapping[str, Collection[str]]

DOCUMENT: Columns = {"id": (), "text": ()}


def case_columns(label: str) -> Columns:
    """Return the columns of cases whose messages name their template under `label`."""
    return {"case_id": (), "messages": ("role", "text", label), KNOWN_VALUES: ()}


def choose_paths(leaves: Sequence[str], columns: Columns) -> list[str]:
    """Return the leaves to decode, by their dotted paths in a Parquet schema.

    Returns all leaves of a file, or of a column, that has none of the needed ones: decoded, it is reported.
    """
    chosen = [leaf for name, fields in columns.items() for leaf in _of_column(leaves, name, fields)]
    return chosen or list(leaves)


def _of_column(leaves: Sequence[str], name: str, fields: Collection[str]) -> Iterator[str]:
    column = [leaf for leaf in leaves if _is_in(leaf, name)]
    needed = [leaf for leaf in column if any(_is_field(leaf, name, field) for field in fields)]
    return iter(needed or column)


def _is_field(leaf: str, name: str, field: str) -> bool:
    """Return whether a leaf is a field of the structs in a list; writers name one or two groups between them."""
    groups = leaf.removeprefix(f"{name}.").split(".")
    return any(_is_in(".".join(groups[skipped:]), field) for skipped in (1, 2))


def _is_in(leaf: str, name: str) -> bool:
    return leaf == name or leaf.startswith(f"{name}.")
