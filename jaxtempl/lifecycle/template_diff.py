"""Compare two lists of templates (issue 19): added, retired, changed in text, probably renamed."""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from jaxtempl import files
from jaxtempl.errors import UserError
from jaxtempl.text.cases import RecordError, template_id

NEAR = 0.9  # similarity of two texts from which a retired and an added template are probably one
SHOWN = 60  # characters of a text in the table
HEADINGS = {"added": "added", "retired": "retired", "changed": "text changed", "renamed": "probably renamed"}


class ListedTemplate(msgspec.Struct, frozen=True):
    """A template of a user's list or of `templates.json`, whose other keys are left out."""

    id: str
    text: str
    active: bool


class Renamed(NamedTuple):
    """A retired template whose text an added one has, nearly.

    Attributes:
        old: Its former id.
        new: The id of the added one.
        similarity: Share of the characters in common blocks, by difflib's `SequenceMatcher.ratio`.
    """

    old: str
    new: str
    similarity: float


class TemplateDiff(NamedTuple):
    """The difference of two lists, by id.

    Attributes:
        added: Active in the new list alone, with their texts.
        retired: Active in the former list alone, with their texts.
        changed: Active in both, with both texts.
        renamed: Pairs of `retired` and `added`, each in one pair at most.
    """

    added: dict[str, str]
    retired: dict[str, str]
    changed: dict[str, tuple[str, str]]
    renamed: list[Renamed]


def read(path: Path) -> dict[str, ListedTemplate]:
    """Return the templates of a list by id.

    Args:
        path: JSON file of templates, or a dataset, run or bundle.

    Raises:
        UserError: There is no list, or an id occurs twice or cannot be kept.
    """
    path = path / "templates.json" if path.is_dir() else path
    try:
        listed = msgspec.convert(files.read_json(path), list[ListedTemplate])
        ids = [str(template_id(template.id)) for template in listed]
    except msgspec.ValidationError as error:
        raise UserError(
            f'{path} is not a list of templates ({error}); [{{"id", "text", "active"}}, ...] is allowed'
        ) from None
    except RecordError as error:
        raise UserError(f"{path}: {error}; shorten or correct it") from None
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        raise UserError(f"{path} has the id {twice[0]!r} more than once; keep one")
    return dict(zip(ids, listed, strict=True))


def compare(old: Mapping[str, ListedTemplate], new: Mapping[str, ListedTemplate]) -> TemplateDiff:
    """Return what changes from one list to another."""
    before, after = ({name: t.text for name, t in listed.items() if t.active} for listed in (old, new))
    added = {name: text for name, text in after.items() if name not in before}
    retired = {name: text for name, text in before.items() if name not in after}
    both = {name: (text, after[name]) for name, text in before.items() if name in after}
    changed = {name: texts for name, texts in both.items() if texts[0].split() != texts[1].split()}
    return TemplateDiff(added, retired, changed, _renamed(added, retired))


def _renamed(added: Mapping[str, str], retired: Mapping[str, str]) -> list[Renamed]:
    """Return the most similar pairs first come, each template once."""
    taken, found = set[tuple[str, str]](), list[Renamed]()
    for pair in sorted(_near(added, retired), key=lambda pair: (-pair.similarity, pair.old, pair.new)):
        sides = {("old", pair.old), ("new", pair.new)}
        if not sides & taken:
            taken |= sides
            found.append(pair)
    return found


def _near(added: Mapping[str, str], retired: Mapping[str, str]) -> Iterator[Renamed]:
    for new, text in added.items():
        matcher = difflib.SequenceMatcher(None, "", text, autojunk=False)  # what it knows of `text` serves every pair
        for old, former in retired.items():
            matcher.set_seq1(former)
            if former and matcher.real_quick_ratio() >= NEAR <= matcher.quick_ratio():
                similarity = matcher.ratio()
                if similarity >= NEAR:
                    yield Renamed(old, new, round(similarity, 4))


def table(diff: TemplateDiff) -> str:
    """Return the difference as text for the terminal."""
    rows: dict[str, list[str]] = {
        "added": [f"{name}  {_shorten(text)}" for name, text in diff.added.items()],
        "retired": [f"{name}  {_shorten(text)}" for name, text in diff.retired.items()],
        "changed": [f"{name}  {_shorten(one)} -> {_shorten(other)}" for name, (one, other) in diff.changed.items()],
        "renamed": [f"{pair.old} -> {pair.new}  {pair.similarity:.0%} of the text" for pair in diff.renamed],
    }
    lines = list[str]()
    for kind, heading in HEADINGS.items():
        lines += [f"{heading}: {len(rows[kind])}", *(f"  {row}" for row in rows[kind])]
    return "\n".join(lines)


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def write(diff: TemplateDiff, path: Path) -> None:
    """Write the difference as JSON."""
    files.write_json(path, {"kind": "template diff", **files.plain(diff)})
