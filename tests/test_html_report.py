"""HTML reports: escaping, self-containment, figures and numbers."""

import re
from pathlib import Path

from jaxtempl.reports.html import BLUE, Measured, Page, drawing, logarithmic

HOSTILE = '<script>alert("$x^2$ & more")</script>'


def written(page: Page, tmp_path: Path) -> str:
    page.write(tmp_path / "page.html")
    return (tmp_path / "page.html").read_text()


def full() -> Page:
    with drawing() as (figure, axes):
        axes.plot([1, 10, 10_000], [0, 1, 2], label=HOSTILE, color=BLUE)
        logarithmic(axes, "x")
        axes.set(title=HOSTILE, xlabel="price in $ or €")
        axes.legend()
    page = Page(f"Title {HOSTILE}", f"Lead {HOSTILE}").heading(HOSTILE).text(HOSTILE)
    page.table(["name", HOSTILE], [[HOSTILE, Measured("0.5", HOSTILE)], ["plain", None]], HOSTILE, strong={0})
    page.table(["folded"], [[1234], [0.5]], HOSTILE, folded=True)
    return page.figure(figure, HOSTILE).figure(figure, "again").facts({HOSTILE: HOSTILE})


def test_customer_text_is_escaped(tmp_path: Path) -> None:
    html = written(full(), tmp_path)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 12
    assert "$x^2$" in html  # shown literally, not rendered as a formula


def test_a_page_is_self_contained(tmp_path: Path) -> None:
    html = written(full(), tmp_path)
    assert "http" not in html
    assert not re.search(r"<(link|img|iframe|script)\b|@import", html)
    assert not re.search(r'(?:src|href)="(?!#)', html)
    assert not re.search(r"url\((?!#)", html)


def test_figures_follow_the_color_scheme_and_are_placed_in_one_row(tmp_path: Path) -> None:
    html = written(full(), tmp_path)
    assert "prefers-color-scheme: dark" in html
    assert html.count("<svg") == 2
    assert html.count('<div class="figures">') == 1
    assert "currentColor" in html
    assert "#010203" not in html


def test_numbers_are_formatted(tmp_path: Path) -> None:
    html = written(full(), tmp_path)
    assert "1,234" in html
    assert "0.500" in html
    assert "10,000" in html  # a tick of the logarithmic axis


def test_pages_are_reproducible_byte_for_byte(tmp_path: Path) -> None:
    assert written(full(), tmp_path) == written(full(), tmp_path)


def test_an_empty_table_shows_its_caption(tmp_path: Path) -> None:
    assert "nothing here" in written(Page("t", "l").table(["a", "b"], [], "nothing here"), tmp_path)
