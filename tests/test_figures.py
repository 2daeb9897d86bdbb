"""Every figure of a paragraph that cites pages of docs/benchmarks stands on one of these pages, up to rounding."""

import re
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from jaxtempl.config.paths import ROOT

BENCHMARKS = ROOT / "docs" / "benchmarks"
# tests/test_deploy.py holds the figures of docs/scale.md, which compares a formula with a benchmark.
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem != "scale")]
CITATION = re.compile(r"benchmarks/(\w+\.md)\)")
OTHER_LINK = re.compile(r"!?\[[^\]]*\]\((?![^)]*benchmarks/)[^)]*\)")  # its figures are those of another page
CODE = re.compile(r"`[^`]*`")
NUMBER = re.compile(r"(?<![\w.,-])\d+(?:,\d{3})*(?:\.\d+)?")


def paragraphs(text: str) -> Iterator[str]:
    """Yield paragraphs, items of lists and rows of tables."""
    yield from re.split(r"\n\s*\n|\n(?=\s*[-|] ?)", text)


def numbers(text: str) -> list[Decimal]:
    return [Decimal(number.replace(",", "")) for number in NUMBER.findall(text)]


def unfounded(text: str) -> list[str]:
    """Return the figures of a page that stand on none of the pages that their paragraph cites."""
    found: list[str] = []
    for paragraph in paragraphs(text):
        cited = [number for name in CITATION.findall(paragraph) for number in numbers((BENCHMARKS / name).read_text())]
        own = re.sub(r"\]\([^)]*\)", "]", CODE.sub("", OTHER_LINK.sub("", paragraph)))
        found += [str(figure) for figure in numbers(own) if cited and not any(rounds_to(n, figure) for n in cited)]
    return found


def rounds_to(number: Decimal, figure: Decimal) -> bool:
    return number.quantize(figure, ROUND_HALF_UP) == figure


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_figure_stands_on_a_page_that_its_paragraph_cites(page: Path) -> None:
    assert unfounded(page.read_text()) == []


def test_another_figure_is_found() -> None:
    cited = "- Top-1 is 0.48 or 0.533 with 2,000 labels ([star](docs/benchmarks/star.md)), and `0.9999` [0.9999](x.md)."
    assert unfounded(cited) == []
    assert unfounded(cited.replace("0.533", "0.539").replace("2,000", "2,001")) == ["0.539", "2001"]
    assert unfounded(cited.replace("docs/benchmarks/star.md", "star.md")) == []
    readme = PAGES[0].read_text()
    assert sum(bool(CITATION.search(paragraph)) for paragraph in paragraphs(readme)) >= 6
