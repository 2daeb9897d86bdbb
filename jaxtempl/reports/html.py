"""Report pages in one style: a single HTML file without external resources, for light and dark, wide and narrow.

Pages show customers' texts and template ids, so the template engine escapes everything, and figures parse no markup.
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
from jaxtempl.specs.interval import UNDEFINED, Interval, format_number

# Okabe and Ito's palette: distinguishable for the colour-blind, on white and on black
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)

FEW_DECADES = 300  # ratio of the maximum to the minimum, below which an axis also marks 2 and 5 times powers of ten
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_INK = "#010203"  # replaced by the page's text colour, so that figures follow light and dark
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


_ENVIRONMENT = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
)


class Measured(NamedTuple):
    """A table cell with a number and a note in smaller type."""

    main: str
    note: str = ""


TableCell = str | int | float | Measured | Interval | None


@contextlib.contextmanager
def drawing(height: float = 3.2, width: float = 4.6) -> Generator[tuple[Figure, Axes]]:
    """Yield a figure in the style of the pages, to draw on inside the block."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        yield figure, figure.subplots()


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic after drawing, with its numbers written out."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_data_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < FEW_DECADES * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axis.set_minor_formatter(NullFormatter())


def format_tick(value: float) -> str:
    """Return a number of an axis in full, in millions (M) or billions (G), or as a power of ten."""
    if value >= 1e12:
        exponent = math.floor(math.log10(value) + 1e-9)
        power = f"10{str(exponent).translate(_SUPERSCRIPT)}"
        return power if math.isclose(value, 10.0**exponent) else f"{value / 10.0**exponent:g}·{power}"
    scale, unit = (1e9, " G") if value >= 1e9 else (1e6, " M") if value >= 1e6 else (1.0, "")
    return f"{value / scale:,g}{unit}"


class Page:
    """A page to which parts are added in order; `write` renders it.

    Args:
        title: title of the page.
        lead: its conclusion, in a sentence or two.
    """

    def __init__(self, title: str, lead: str) -> None:
        self._title, self._lead = title, lead
        self._parts: list[dict[str, Any]] = []

    def heading(self, text: str) -> "Page":
        """Add the heading of a section."""
        return self._add("heading", text=text)

    def text(self, text: str) -> "Page":
        """Add a paragraph."""
        return self._add("text", text=text)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[TableCell]],
        caption: str = "",
        strong: Collection[int] = (),
        folded: bool = False,
    ) -> "Page":
        """Add a table; numbers are aligned right.

        Args:
            columns: names of the columns.
            rows: cells by row; an interval is shown with its bounds below the value.
            caption: content of the table.
            strong: indices of the rows that the page is about.
            folded: whether the table is hidden until the reader opens it.
        """
        cells = [[_cell(value) for value in row] for row in rows]
        return self._add("table", columns=columns, rows=cells, caption=caption, strong=strong, folded=folded)

    def figure(self, figure: Figure, caption: str) -> "Page":
        """Add a figure from `drawing`; consecutive figures are placed side by side where there is room."""
        if not self._parts or self._parts[-1]["kind"] != "figures":
            self._add("figures", figures=[])
        self._parts[-1]["figures"].append({"svg": _svg(figure), "caption": caption})
        return self

    def facts(self, facts: Mapping[str, Any]) -> "Page":
        """Add the origin of the numbers, in small print."""
        return self._add("facts", facts=facts)

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        page = _ENVIRONMENT.get_template("page.html.jinja").render(
            title=self._title, lead=self._lead, parts=self._parts
        )
        with files.atomic_file(path) as temporary:
            temporary.write_text(page, encoding="utf-8")

    def _add(self, kind: str, **part: Any) -> "Page":
        self._parts.append({"kind": kind, **part})
        return self


def _cell(value: TableCell) -> dict[str, Any]:
    if isinstance(value, Interval):
        value = Measured(format_number(value.value, ".3f"), value.bounds())
    if isinstance(value, Measured):
        return {"main": value.main, "note": value.note, "number": True}
    if isinstance(value, str):
        return {"main": value, "note": "", "number": False}
    main = UNDEFINED if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    return {"main": main, "note": "", "number": True}


def save_png(figure: Figure, path: Path) -> None:
    """Save a figure from `drawing` as PNG on white."""
    with mpl.rc_context(_STYLE), files.atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
    figure.set_layout_engine("none")  # the SVG of the page keeps this layout, which takes as long as drawing


def _svg(figure: Figure) -> Markup:
    """Return the figure as inline SVG without prologue, metadata or URLs."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    return Markup(svg.replace(_INK, "currentColor"))
