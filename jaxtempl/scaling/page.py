"""The page of a study: accuracy tables, the paper's figures and all cells; its laws are in `page_laws`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxtempl.reports.html import Measured, Page, TableCell
from jaxtempl.scaling import page_laws, table3
from jaxtempl.scaling.columns import TOP_K, ResultRow
from jaxtempl.scaling.figures import OPERATIONS, StudyFigures
from jaxtempl.scaling.laws import goodness_of_fit, selection
from jaxtempl.scaling.laws.regression import CommonCurveTest
from jaxtempl.scaling.laws.summaries import quantity_name
from jaxtempl.scaling.page_content import FigurePage, StudyPage, interval_cell, mean_interval

START_NAMES = {"random": "random weights", "base": "pre-trained", "adapted": "adapted"}


def write(study: StudyPage, out: Path) -> None:
    """Write `index.html` and the figures."""
    page = FigurePage(
        Page("How classification scales", " ".join(_lead(study))), StudyFigures(study.rows, study.analysis), out
    )
    _table3(page, study)
    if study.analysis.loss_to_loss.by_size:
        _figure3(page, study)
        _figure8(page)
        _figure9(page, study)
    _labels(page)
    page_laws.add(page, study)
    _ablations(page.page, study.rows)
    _cells(page.page, study.rows)
    page.page.facts(_facts(study)).write(out / "index.html")


def _lead(study: StudyPage) -> Iterator[str]:
    sizes = {row["size"] for row in study.rows}
    yield f"{len(study.rows):,} fine-tunings of {len(sizes)} models, each measured on the labels of the test split."
    unfinished = sorted({row["size"] for row in study.rows if not row["finished"]})
    if unfinished:
        yield f"The adaptation of {', '.join(unfinished)} did not reach its last update, so its curve is partial."


def _facts(study: StudyPage) -> dict[str, str]:
    return {
        "studies": ", ".join(map(str, study.runs)),
        "intervals": "95 %; of accuracies and losses over resamples of whole cases, of laws over resamples of cells",
        "machine time": f"{sum(row['seconds'] for row in study.rows) / 3600:.1f} hours of fine-tuning and measuring",
    }


def _table3(page: FigurePage, study: StudyPage) -> None:
    labels = page.figures.labels
    kept = [row for row in study.rows if not row["variant"] and row["labels"] == labels]
    groups = [
        (size, start, cells)
        for size in selection.sizes(kept)
        for start in START_NAMES
        if (cells := _last(kept, size, start))
    ]
    page.page.heading(f"The paper's Table 3, at {labels:,} labels").table(
        ["model", "start", "top-1", "top-3", "top-5", "loss"],
        [
            [size, START_NAMES[start], *(mean_interval(cells, name) for name in (*TOP_K, "loss"))]
            for size, start, cells in groups
        ],
        "Brackets are 95 % intervals over test cases; values are means over seeds. The data, the labels and the sizes "
        "are not the paper's: compare the gains of adaptation and of size.",
        strong=[i for i, (_, start, _) in enumerate(groups) if start == "adapted"],
    )
    gains = dict(_gains(kept))
    if len(gains) > 1:
        page.figure("uplift", page.figures.uplift(gains), "The gain of adaptation by size, next to the paper's.")
    page.page.table(
        ["model", "top-1", "top-3", "top-5", "adapted: top-1", "top-3", "top-5"],
        [[name, *(Measured(f"{v:.2f}") for v in (*before, *after))] for name, (before, after) in table3.PAPER.items()],
        "The paper's Table 3, per cent",
        folded=True,
    )


def _last(rows: Sequence[ResultRow], size: str, start: str) -> list[ResultRow]:
    """Return a size's cells of a start; of adapted ones, those of the main corpus's last checkpoint."""
    corpus = selection.main_corpus(rows) if start == "adapted" else ""
    cells = [row for row in rows if (row["size"], row["start"], row["corpus"]) == (size, start, corpus)]
    last = max((row["adapt_step"] for row in cells), default=0)
    return [row for row in cells if row["adapt_step"] == last]


def _gains(rows: Sequence[ResultRow]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield each size with its parameters and its top-1 gain in percentage points."""
    for size in selection.sizes(selection.study_rows(rows)):
        base, adapted = (_last(rows, size, start) for start in ("base", "adapted"))
        if base and adapted:
            before, after = (100 * np.mean([row["top1"] for row in cells]) for cells in (base, adapted))
            yield size, (float(base[0]["parameters"]), float(after - before))


def _figure3(page: FigurePage, study: StudyPage) -> None:
    figures = page.figures
    page.page.heading("Classification loss (Figure 3)").text(
        f"Fine-tuned on {figures.labels:,} labels from each checkpoint. Dotted horizontal lines: the same model, "
        "not adapted."
    )
    page.figure("figure-3a", figures.plot("flops_all", "loss"), "a: against operations, 6 N D.")
    page.figure("figure-3b", figures.plot("tokens", "loss"), "b: against tokens.")
    page.figure(
        "figure-3c", figures.loss_to_loss(), "c: against language-model loss. Lines: each size, and all sizes (grey)."
    )
    for name in ("flops_body", "flops_exact"):
        caption = f"a, with another definition of operations: {OPERATIONS[name]}."
        page.figure(f"figure-3a-{name}", figures.plot(name, "loss"), caption)
    _regressions(page, study)


def _regressions(page: FigurePage, study: StudyPage) -> None:
    """Add the regression lines of Figure 3c and the tests of a common curve."""
    regressions = study.analysis.loss_to_loss
    rows: list[list[TableCell]] = [
        [name, interval_cell(line.slope), interval_cell(line.intercept), line.r2, line.points]
        for name, line in {"all sizes": regressions.pooled, **regressions.by_size}.items()
        if line
    ]
    page.page.table(["", "slope", "intercept", "R²", "points"], rows, "Regression lines of Figure 3c.")
    if regressions.test:
        page.page.text(f"One line for all sizes {_format_test(regressions.test)}")
    for quantity, test in study.analysis.common_curves.items():
        page.page.text(f"For {quantity_name(quantity)}, one curve in compute for all sizes {_format_test(test)}")


def _format_test(test: CommonCurveTest) -> str:
    verdict = "is rejected" if test.p < goodness_of_fit.SIGNIFICANCE else "is not rejected"
    return (
        f"{verdict}: a curve for each size leaves {test.separate / max(test.pooled, 1e-300):.0%} of its residual sum "
        f"of squares (F = {test.f:.1f}, p = {test.p:.2g})."
    )


def _figure8(page: FigurePage) -> None:
    page.page.heading("Accuracy (Figure 8)")
    for part, x in zip("abc", ("flops_all", "tokens", "domain_loss"), strict=True):
        for name in TOP_K:
            page.figure(f"figure-8{part}-{name}", page.figures.plot(x, name), f"{part}: {quantity_name(name)}.")


def _figure9(page: FigurePage, study: StudyPage) -> None:
    def run(size: str, corpus: str) -> Path:
        folders = [folder / "adapted" / f"{size}_{corpus}" for folder in study.runs]
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    figures = page.figures
    page.page.heading("Adaptation (Figure 9)")
    page.figure("figure-9a", figures.learning_curves(run, "loss"), "Training loss of each update.")
    page.figure("figure-9b", figures.learning_curves(run, "validation_loss"), "Validation loss at each checkpoint.")
    page.figure("language", figures.plot("flops_all", "domain_loss"), "Loss on the task's held-out cases.")
    if any(row["zero_shot_likeliest_top1"] is not None for row in study.rows):
        page.figure(
            "zero-shot",
            figures.plot("flops_all", "zero_shot_likeliest_top1"),
            "Zero-shot: share of contexts after which the sent reply is the likeliest of all templates.",
        )


def _labels(page: FigurePage) -> None:
    if len({row["labels"] for row in page.figures.rows}) < 2:
        return
    page.page.heading("Labels")
    for name in ("loss", "top1"):
        page.figure(f"labels-{name}", page.figures.by_labels(name), f"{quantity_name(name)} against labels.")


def _ablations(page: Page, rows: Sequence[ResultRow]) -> None:
    variants = sorted({row["variant"] for row in rows} - {""})
    if not variants:
        return
    by_variant = [[row for row in rows if row["variant"] == variant] for variant in variants]
    page.heading("Ablations").table(
        ["variant", "cells", "top-1", "top-3", "top-5", "loss"],
        [
            [variant, len(cells), *(mean_interval(cells, name) for name in (*TOP_K, "loss"))]
            for variant, cells in zip(variants, by_variant, strict=True)
        ],
    )


def _cells(page: Page, rows: Sequence[ResultRow]) -> None:
    columns = ("cell", "tokens", "labels", "domain_loss", "general_loss", *TOP_K, "loss", "zero_shot_top1", "alignment")
    page.table(columns, [[row[name] for name in columns] for row in rows], f"All {len(rows):,} cells", folded=True)
