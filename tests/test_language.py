"""Names and English: the rules that a program can check, each with its replacement in the failure message."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from jaxtempl.config.paths import ROOT

PACKAGES = ("jaxtempl", "converters", "bench")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]
SPOKEN = ROOT / "jaxtempl" / "synthetic"  # what customers ask and say

# A docstring starts with a sentence, a verb phrase or a noun phrase, never with a fragment that begins with these.
FRAGMENTS = ("Of", "That", "Those", "As", "What", "Who", "Where", "By", "Whether")

# In prose: the pattern, and what to write.
PROSE = {
    r"told": "reports, states, names, prints",
    r"said|says so": "states, reports",
    r"asked( for)?": "requested, config",
    r"foretold|foretells?": "predicted, forecast",
    r"anew": "again",
    r"beside": "next to, with",
    r"likewise|alike": "also, equally",
    r"(gone|goes|go|going) on with": "resume, continue",
    r"of (its|their) own": "its, own, separate",
    r"in (its|their) place": "instead",
    r"in (the )?place of": "instead of",
    r"but for": "except",
    r"lest|therewith|thereby": "so that, with it",
}
IDENTIFIERS = {
    "told": "to_dict, format, lines, reported, by what it holds",
    "said": "summary, text, printed",
    "asked": "config, requested",
    "foretold": "predicted, forecast",
    "places": "shardings, positions",
}


class Text(NamedTuple):
    """A text and its position."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {' '.join(self.text.split())[:100]}"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def docstrings(path: Path) -> Iterator[Text]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield Text(path, node.body[0].lineno, text)


def comments(path: Path) -> Iterator[Text]:
    source = io.StringIO(path.read_text(encoding="utf-8"))
    for token in tokenize.generate_tokens(source.readline):
        if token.type == tokenize.COMMENT:
            yield Text(path, token.start[0], token.string)


def strings(path: Path) -> Iterator[Text]:
    """Strings of several words: docstrings, help, errors, and what is printed."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield Text(path, node.lineno, node.value)


@cache
def prose(path: Path) -> list[Text]:
    if path.suffix == ".md":
        text = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), path.read_text("utf-8"), flags=re.DOTALL)
        return [Text(path, i, line) for i, line in enumerate(text.splitlines(), 1)]
    return [] if path.is_relative_to(SPOKEN) else [*comments(path), *strings(path)]


@cache
def identifiers(path: Path) -> list[Text]:
    return list(_identifiers(path))


def _identifiers(path: Path) -> Iterator[Text]:
    for node in ast.walk(tree(path)):
        line = getattr(node, "lineno", 0)
        for field in ("id", "attr", "arg", "name"):
            name = getattr(node, field, None)
            if isinstance(name, str) and not isinstance(node, ast.alias):
                yield Text(path, line, name)


def types(path: Path) -> Iterator[Text]:
    """Classes and capitalised aliases of a module."""
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef):
            yield Text(path, node.lineno, node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if is_alias(node) else []
        for target in targets:
            if isinstance(target, ast.Name) and re.match(r"[A-Z]\w*[a-z]", target.id):
                yield Text(path, node.lineno, target.id)


def is_alias(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).endswith("TypeAlias")


def report(rule: str, found: list[Text]) -> None:
    lines = "\n".join(map(str, found))
    assert not found, f"{len(found)} violations: {rule}\n{lines}"


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_do_not_begin_with_a_fragment(package: str) -> None:
    texts = [text for path in FILES if path.is_relative_to(ROOT / package) for text in docstrings(path)]
    rule = 'begin a docstring with a verb ("Return whether ...") or a noun phrase ("A folder that ..."), not a fragment'
    report(rule, [text for text in texts if text.text.split()[0] in FRAGMENTS])


@pytest.mark.parametrize("pattern", PROSE)
def test_prose_uses_the_plain_word(pattern: str) -> None:
    word = re.compile(rf"(?<![\w`/.-])({pattern})(?![\w`/-]|\.\w)", re.IGNORECASE)
    texts = [text for path in [*FILES, *PAGES] for text in prose(path)]
    report(f"instead of /{pattern}/ write: {PROSE[pattern]}", [text for text in texts if word.search(text.text)])


@pytest.mark.parametrize("name", IDENTIFIERS)
def test_identifiers_use_the_term_of_the_field(name: str) -> None:
    texts = [text for path in FILES for text in identifiers(path)]
    rule = f"instead of the identifier {name!r} use: {IDENTIFIERS[name]}"
    report(rule, [text for text in texts if name in text.text.split("_")])


def test_a_type_name_means_one_thing() -> None:
    definitions = defaultdict[str, list[Text]](list)
    for path in FILES:
        if not path.is_relative_to(ROOT / "bench"):
            for text in types(path):
                definitions[text.text].append(text)
    rule = "two types have one name; rename one by what it holds"
    report(rule, [text for texts in definitions.values() if len(texts) > 1 for text in texts])
