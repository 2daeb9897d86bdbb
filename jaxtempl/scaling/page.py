"""The page of a study, and its pictures as files beside it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from jaxtempl.reports import html
from jaxtempl.reports.html import Measured, Page, TableCell
from jaxtempl.scaling import figures, table3
from jaxtempl.scaling.equivalents import Equivalents
from jaxtempl.scaling.figures import COMPUTE, Drawer
from jaxtempl.scaling.laws import analysis, data, goodness_of_fit
from jaxtempl.scaling.laws.analysis import Finding, Findings
from jaxtempl.scaling.laws.data import Row
from jaxtempl.scaling.laws.fitting import Value
from jaxtempl.scaling.laws.regression import Test
from jaxtempl.scaling.laws.summaries import named
from jaxtempl.scaling.results import TOP

STARTS = {"random": "random weights", "base": "as pre-trained", "adapted": "adapted"}


class Study(NamedTuple):
    """What a page is of.

    Attributes:
        rows: of the results.
        found: what laws say of them.
        equivalents: which tokens are worth which.
        runs: the studies' folders.
    """

    rows: Sequence[Row]
    found: Findings
    equivalents: Equivalents
    runs: Sequence[Path]


class Album(NamedTuple):
    """A page whose figures are pictures, too."""

    page: Page
    out: Path

    def figure(self, name: str, figure: Figure | None, caption: str) -> None:
        """Puts a figure on the page, and its picture beside it."""
        if figure:
            html.save_png(figure, self.out / f"{name}.png")
            self.page.figure(figure, caption)


def write(study: Study, out: Path) -> None:
    """Writes `index.html` and the pictures."""
    page = Page("How classification scales", " ".join(_lead(study)))
    album, drawer = Album(page, out), Drawer(study.rows, study.found)
    _table3(album, study, drawer)
    if drawer.found.loss_to_loss.by_size:
        _figure3(album, study, drawer)
        _figure8(album, drawer)
        _figure9(album, study, drawer)
    _labels(album, drawer)
    _laws(album, study)
    _trends(album, study, drawer)
    _worth(album, study, drawer)
    _equivalents(album, study)
    _ablations(page, study.rows)
    _cells(page, study.rows)
    page.facts(_facts(study)).write(out / "index.html")


def _lead(study: Study) -> Iterator[str]:
    sizes = {row["size"] for row in study.rows}
    yield f"{len(study.rows):,} fine-tunings of {len(sizes)} models, each measured on the test side's labels."
    unfinished = sorted({row["size"] for row in study.rows if not row["finished"]})
    if unfinished:
        yield f"The adaptation of {', '.join(unfinished)} did not come to its end: its curve is a part of one."


def _facts(study: Study) -> dict[str, str]:
    return {
        "studies": ", ".join(map(str, study.runs)),
        "intervals": "95 %; of accuracies and losses over resamples of whole cases, of laws over resamples of cells",
        "machine time": f"{sum(row['seconds'] for row in study.rows) / 3600:.1f} hours of fine-tuning and measuring",
    }


def _table3(album: Album, study: Study, drawer: Drawer) -> None:
    kept = [row for row in study.rows if not row["variant"] and row["labels"] == drawer.labels]
    rows = [
        (size, start, cells) for size in data.sizes(kept) for start in STARTS if (cells := _last(kept, size, start))
    ]
    album.page.heading(f"As the paper's Table 3, at {drawer.labels:,} labels").table(
        ["model", "start", "top-1", "top-3", "top-5", "loss"],
        [[size, STARTS[start], *(_interval(cells, name) for name in (*TOP, "loss"))] for size, start, cells in rows],
        "95 % intervals over test cases in small print; means over seeds where there are several. Other data, labels "
        "and sizes than the paper's: what is to be compared is what adapting and size add.",
        strong=[i for i, (_, start, _) in enumerate(rows) if start == "adapted"],
    )
    gains = dict(_gains(kept))
    if len(gains) > 1:
        album.figure(
            "uplift", drawer.uplift(gains), "What adapting adds, by size; the paper's points are its Table 3's."
        )
    album.page.table(
        ["model", "top-1", "top-3", "top-5", "adapted: top-1", "top-3", "top-5"],
        [[name, *(Measured(f"{v:.2f}") for v in (*before, *after))] for name, (before, after) in table3.PAPER.items()],
        "The paper's own Table 3, per cent",
        folded=True,
    )


def _last(rows: Sequence[Row], size: str, start: str) -> list[Row]:
    """A size's cells of a start: of adapted ones the last checkpoint's, on the corpus that most were adapted to."""
    own = [row for row in rows if (row["size"], row["start"]) == (size, start)]
    corpus = data.main_corpus(rows) if start == "adapted" else ""
    own = [row for row in own if row["corpus"] == corpus]
    last = max((row["adapt_step"] for row in own), default=0)
    return [row for row in own if row["adapt_step"] == last]


def _interval(cells: Sequence[Row], name: str) -> TableCell:
    value, low, high = (np.mean([row[name + end] for row in cells]) for end in ("", "_low", "_high"))
    return Measured(f"{value:.3f}", f"{low:.3f} to {high:.3f}")


def _gains(rows: Sequence[Row]) -> Iterator[tuple[str, tuple[float, float]]]:
    for size in data.sizes(data.own(rows)):
        base, adapted = (_last(rows, size, start) for start in ("base", "adapted"))
        if base and adapted:
            before, after = (100 * np.mean([row["top1"] for row in cells]) for cells in (base, adapted))
            yield size, (float(base[0]["parameters"]), float(after - before))


def _figure3(album: Album, study: Study, drawer: Drawer) -> None:
    album.page.heading("Classification loss (Figure 3)").text(
        f"Fine-tuned on {drawer.labels:,} labels from each checkpoint. Dotted, level: the same model not adapted."
    )
    album.figure("figure-3a", drawer.against("flops_all", "loss"), "a: against operations, 6 N D.")
    album.figure("figure-3b", drawer.against("tokens", "loss"), "b: against tokens.")
    album.figure(
        "figure-3c", drawer.loss_to_loss(), "c: against language-model loss, with a line a size and, grey, one for all."
    )
    for name in ("flops_body", "flops_exact"):
        album.figure(f"figure-3a-{name}", drawer.against(name, "loss"), f"a again, operations being {COMPUTE[name]}.")
    pair = study.found.loss_to_loss
    lines = {"all sizes": pair.pooled, **pair.by_size}
    rows: list[list[TableCell]] = [
        [name, Measured(*_split(line.slope)), Measured(*_split(line.intercept)), line.r2, line.points]
        for name, line in lines.items()
        if line
    ]
    album.page.table(["", "slope", "intercept", "R²", "points"], rows, "Lines of Figure 3c.")
    if pair.test:
        album.page.text(f"One line for all sizes {_verdict(pair.test)}")
    for quantity, test in study.found.one_curve.items():
        album.page.text(f"Of {named(quantity)}, one curve in compute for all sizes {_verdict(test)}")


def _split(value: Value) -> tuple[str, str]:
    return f"{value.value:.3g}", f"{value.low:.3g} to {value.high:.3g}"


def _verdict(test: Test) -> str:
    does = "does not do: one a size" if test.p < goodness_of_fit.LEFT_OVER else "does: one a size"
    return (
        f"{does} leaves {test.apart / max(test.pooled, 1e-300):.0%} of what it leaves unexplained "
        f"(F = {test.f:.1f}, p = {test.p:.2g})."
    )


def _figure8(album: Album, drawer: Drawer) -> None:
    album.page.heading("Accuracy (Figure 8)")
    for part, x in zip("abc", ("flops_all", "tokens", "domain_loss"), strict=True):
        for name in TOP:
            album.figure(f"figure-8{part}-{name}", drawer.against(x, name), f"{part}: {named(name)}.")


def _figure9(album: Album, study: Study, drawer: Drawer) -> None:
    def run(size: str, corpus: str) -> Path:
        folders = [folder / "adapted" / f"{size}_{corpus}" for folder in study.runs]
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    album.page.heading("The adaptations (Figure 9)")
    album.figure("figure-9a", drawer.learning(run, "loss"), "Training loss of each update.")
    album.figure("figure-9b", drawer.learning(run, "validation_loss"), "Loss on the validation part, at checkpoints.")
    album.figure("language", drawer.against("flops_all", "domain_loss"), "Loss on the task's held-out cases.")
    if any(row["exam_likeliest_top1"] is not None for row in study.rows):
        exam = drawer.against("flops_all", "exam_likeliest_top1")
        album.figure(
            "exam", exam, "Zero-shot exam: how often the reply that was sent is the likeliest of all templates'."
        )


def _labels(album: Album, drawer: Drawer) -> None:
    if len({row["labels"] for row in drawer.rows}) < 2:
        return
    album.page.heading("Labels")
    for name in ("loss", "top1"):
        album.figure(f"labels-{name}", drawer.by_labels(name), f"{named(name)} against labels.")


def _laws(album: Album, study: Study) -> None:
    if not study.found.laws:
        return
    held = [law for law in study.found.laws if not law.refused]
    album.page.heading("Laws").text(
        f"{len(held)} of {len(study.found.laws)} hold. A law does not hold where what it leaves over is no noise, or "
        "where there is too little trend; then no line of it is drawn."
    )
    album.page.table(
        ["law", "of", "parameters", "R²", "off on held-out", "says"],
        [_law(law) for law in held],
        "Off on held-out: mean relative error on the last quarter of the points, fitted to the others. "
        "Brackets are 95 % intervals of the bootstrap.",
    )
    pooled = [law for law in held if law.where in ("all sizes", "all mixtures", "adapted to the end")]
    for i, law in enumerate(pooled):
        album.figure(f"law-{i}", figures.law(law), f"{law.law}: {law.formula}, {law.where}.")
    refused = [law for law in study.found.laws if law.refused]
    rows: list[list[TableCell]] = [[law.law, f"{named(law.quantity)}, {law.where}", law.refused] for law in refused]
    album.page.table(["law", "of", "why not"], rows, f"The {len(refused)} that do not hold", folded=True)
    sources = {law.law: (law.formula, law.source) for law in study.found.laws}
    album.page.table(
        ["law", "formula", "source"],
        [[name, *said] for name, said in sources.items()],
        "Formulas and sources",
        folded=True,
    )


def _law(law: Finding) -> list[TableCell]:
    parameters = ", ".join(f"{name} {goodness_of_fit.said(value)}" for name, value in law.parameters.items())
    off = None if np.isnan(law.foretold) else Measured(f"{law.foretold:.1%}")
    return [law.law, f"{named(law.quantity)}, {law.where}, {law.points} points", parameters, law.r2, off, law.says]


def _trends(album: Album, study: Study, drawer: Drawer) -> None:
    if not study.found.trends:
        return
    names = ("loss", *TOP)
    rows: list[list[TableCell]] = [
        [curve.size, curve.corpus, *(curve.directions[name] for name in names), "yes" if curve.misaligned else "no"]
        for curve in study.found.trends
    ]
    album.page.heading("Does more adaptation help?").table(
        ["size", "corpus", *map(named, names), "loss improves, top-1 does not"],
        rows,
        "Mann and Kendall's test of each curve from the model that was not adapted on, at 5 %. The last column is the "
        "sign of a corpus that is not the task's (Isik et al., 2024): more of it is not worth its price.",
    )
    if study.found.forgetting:
        lines: list[list[TableCell]] = [
            [name, Measured(*_split(line.slope)), line.r2] for name, line in study.found.forgetting.items()
        ]
        album.page.heading("What is forgotten").table(
            ["size and corpus", "general loss gained, a nat of domain loss won", "R²"], lines
        )
        album.figure("forgetting", drawer.forgetting(), "General loss against domain loss, as the adaptation goes on.")
    if study.found.critical:
        shares: list[list[TableCell]] = [[size, share] for size, share in study.found.critical.items()]
        album.page.table(
            ["size", "most domain text"],
            shares,
            f"Up to this share of domain text general loss stays within {analysis.GUARD:.0%} of the base's, by the law "
            "of mixtures at the most tokens measured (Que et al., 2024).",
        )


def _worth(album: Album, study: Study, drawer: Drawer) -> None:
    if not any(worth.ratio.by_size for worth in study.found.worth):
        return
    album.page.heading("What domain text is worth").text(
        "How many times the tokens of the corpus with the least domain text a size needs for the domain loss that "
        "another corpus gives it (after arXiv 2501.02068)."
    )
    album.figure(
        "worth", drawer.worth(), "Above 1, the other corpus needs more tokens; a triangle is at least so many times."
    )
    for worth in study.found.worth:
        if worth.ratio.trend:
            slope = goodness_of_fit.said(worth.ratio.trend.slope)
            album.page.text(f"{worth.special} over {worth.general}: ten times the size multiplies it by 10 ^ {slope}.")


def _equivalents(album: Album, study: Study) -> None:
    curves = study.equivalents.curves
    rows: list[list[TableCell]] = [
        [size, Measured(f"{tokens[at]:,.0f}"), other.size, other.tokens and Measured(f"{other.tokens:,.0f}"), other.how]
        for size, (tokens, losses) in curves.items()
        for at in (0, len(tokens) - 1)
        for other in study.equivalents.matching(size, float(losses[at]))
    ]
    if rows:
        album.page.heading("Equivalent tokens").table(
            ["size", "at tokens", "is matched by", "at tokens", ""], rows, "Those with the same classification loss."
        )


def _ablations(page: Page, rows: Sequence[Row]) -> None:
    variants = sorted({row["variant"] for row in rows} - {""})
    if not variants:
        return
    kept = [[row for row in rows if row["variant"] == variant] for variant in variants]
    page.heading("Ablations").table(
        ["variant", "cells", "top-1", "top-3", "top-5", "loss"],
        [
            [variant, len(cells), *(_interval(cells, name) for name in (*TOP, "loss"))]
            for variant, cells in zip(variants, kept, strict=True)
        ],
    )


def _cells(page: Page, rows: Sequence[Row]) -> None:
    columns = ("cell", "tokens", "labels", "domain_loss", "general_loss", *TOP, "loss", "exam_top1", "alignment")
    page.table(columns, [[row[name] for name in columns] for row in rows], f"All {len(rows):,} cells", folded=True)
