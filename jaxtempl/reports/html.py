"""The one style of all report pages: one HTML file that needs nothing else, light and dark, wide screen and phone.

Texts of customers and ids of templates are shown, so everything is escaped by the template engine, and nothing that
is drawn is read as markup.
"""

import contextlib
import io
import math
import re
from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxtempl import files

# Okabe and Ito's colours, told apart by the colour-blind and on white as on black
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)

FEW_DECADES = 300  # from the least to the greatest value: then 2 and 5 are marked beside each power of ten
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_INK = "#010203"  # becomes the page's own text colour, so that a figure follows light and dark
_STYLE: Any = {
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxtempl",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK
    ),
}


class Measured(NamedTuple):
    """A table's cell: a number and, smaller, what goes with it."""

    main: str
    note: str = ""


TableCell = str | int | float | Measured | None


@contextlib.contextmanager
def drawing(height: float = 3.2, width: float = 4.6) -> Generator[tuple[Figure, Axes]]:
    """A figure in the pages' style; draw on it inside the block."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        yield figure, figure.subplots()


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Makes one axis of what is drawn already logarithmic, its numbers written out."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_data_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < FEW_DECADES * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axis.set_minor_formatter(NullFormatter())


def format_tick(value: float) -> str:
    """A number of an axis: in full, in millions or billions, or as a power of ten, whichever is short."""
    if value >= 1e12:
        exponent = math.floor(math.log10(value) + 1e-9)
        power = f"10{str(exponent).translate(_SUPERSCRIPT)}"
        return power if math.isclose(value, 10.0**exponent) else f"{value / 10.0**exponent:g}·{power}"
    scale, unit = (1e9, " G") if value >= 1e9 else (1e6, " M") if value >= 1e6 else (1.0, "")
    return f"{value / scale:,g}{unit}"


class Page:
    """Parts one after another, then `write`.

    Args:
        title: of the page.
        lead: what it says, in a sentence or two.
    """

    def __init__(self, title: str, lead: str) -> None:
        self._title, self._lead = title, lead
        self._parts: list[dict[str, Any]] = []

    def heading(self, text: str) -> "Page":
        """Begins a section."""
        return self._add("heading", text=text)

    def text(self, text: str) -> "Page":
        """A paragraph."""
        return self._add("text", text=text)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[TableCell]],
        caption: str = "",
        strong: Collection[int] = (),
        folded: bool = False,
    ) -> "Page":
        """A table; numbers stand on the right.

        Args:
            columns: their names.
            rows: cells by row.
            caption: what the table shows.
            strong: rows that the page is about.
            folded: shown only when the reader opens it.
        """
        cells = [[_cell(value) for value in row] for row in rows]
        return self._add("table", columns=columns, rows=cells, caption=caption, strong=strong, folded=folded)

    def figure(self, figure: Figure, caption: str) -> "Page":
        """A figure from `drawing`; those that follow one another stand side by side where there is room."""
        if not self._parts or self._parts[-1]["kind"] != "figures":
            self._add("figures", figures=[])
        self._parts[-1]["figures"].append({"svg": _svg(figure), "caption": caption})
        return self

    def facts(self, facts: Mapping[str, Any]) -> "Page":
        """Small print: where the numbers come from."""
        return self._add("facts", facts=facts)

    def write(self, path: Path) -> None:
        """Writes the page, whole or not at all."""
        page = _ENVIRONMENT.from_string(_TEMPLATE).render(title=self._title, lead=self._lead, parts=self._parts)
        with files.atomic_file(path) as temporary:
            temporary.write_text(page)

    def _add(self, kind: str, **part: Any) -> "Page":
        self._parts.append({"kind": kind, **part})
        return self


def _cell(value: TableCell) -> dict[str, Any]:
    if isinstance(value, Measured):
        return {"main": value.main, "note": value.note, "number": True}
    if isinstance(value, str):
        return {"main": value, "note": "", "number": False}
    main = "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"  # noqa: RUF001
    return {"main": main, "note": "", "number": True}


def save_png(figure: Figure, path: Path) -> None:
    """A figure from `drawing` as a picture on white."""
    with mpl.rc_context(_STYLE), files.atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def _svg(figure: Figure) -> Markup:
    """The figure as inline SVG: no prologue, no metadata, no address of anything."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    return Markup(svg.replace(_INK, "currentColor"))


_ENVIRONMENT = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
)

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --ink: #1b1f24; --quiet: #5c6670; --line: #dfe3e8; --paper: #fff; --strong: #eaf3fa; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --quiet: #9aa5b1; --line: #343b44; --paper: #14171b; --strong: #17293a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
p { max-width: 46rem; margin: .5rem 0; }
.lead { font-size: 1.1rem; color: var(--quiet); }
.scroll { overflow-x: auto; margin: 1rem 0 .5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: baseline; }
th, td { border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: .6rem; }
th.number { white-space: normal; }
th { font-weight: 600; font-size: .85rem; color: var(--quiet); vertical-align: bottom; }
td { overflow-wrap: anywhere; min-width: 8rem; max-width: 24rem; }
.number { text-align: right; white-space: nowrap; min-width: 4rem; }
.note { display: block; color: var(--quiet); font-size: .78rem; }
.strong td { background: var(--strong); font-weight: 600; }
.strong .note { font-weight: 400; }
.caption, figcaption { color: var(--quiet); font-size: .88rem; max-width: 46rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem; }
.figures { margin: 1rem 0; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; max-width: 34rem; color: var(--ink); }
@media (prefers-color-scheme: dark) { figure svg { filter: brightness(1.3); } }
figure svg text { font-family: system-ui, sans-serif !important; }
summary { cursor: pointer; color: var(--quiet); margin-top: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; }
dl { font-size: .85rem; color: var(--quiet); margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
dd { margin: 0; overflow-wrap: anywhere; }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
{% macro grid(part) %}
<div class="scroll" role="region" aria-label="{{ part.caption or 'table' }}" tabindex="0"><table>
<thead><tr>
{% for name in part.columns %}
<th scope="col"{% if part.rows and part.rows[0][loop.index0].number %} class="number"{% endif %}>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in part.rows %}
<tr{% if loop.index0 in part.strong %} class="strong"{% endif %}>
{% for cell in row %}
<td{% if cell.number %} class="number"{% endif %}>{{ cell.main }}\
{% if cell.note %}<span class="note">{{ cell.note }}</span>{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endmacro %}
{% for part in parts %}
{% if part.kind == "heading" %}
<h2>{{ part.text }}</h2>
{% elif part.kind == "text" %}
<p>{{ part.text }}</p>
{% elif part.kind == "table" and part.folded %}
<details><summary>{{ part.caption }}</summary>
{{ grid(part) }}
</details>
{% elif part.kind == "table" %}
{{ grid(part) }}
{% if part.caption %}
<p class="caption">{{ part.caption }}</p>
{% endif %}
{% elif part.kind == "figures" %}
<div class="figures">
{% for figure in part.figures %}
<figure>{{ figure.svg }}<figcaption>{{ figure.caption }}</figcaption></figure>
{% endfor %}
</div>
{% elif part.kind == "facts" %}
<dl>
{% for name, value in part.facts.items() %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% endif %}
{% endfor %}
</main>
</body>
</html>
"""
