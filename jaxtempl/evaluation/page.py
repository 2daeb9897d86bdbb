"""The HTML page of an evaluation: the content of report.json as tables and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxtempl.evaluation import metrics
from jaxtempl.evaluation.paired import PairedDifference
from jaxtempl.reports import html
from jaxtempl.reports.html import Page, TableCell
from jaxtempl.specs.interval import Interval

BASELINE_NAMES = {
    "run": "this run",
    "ngrams": "n-grams",
    "previous_template": "previous template",
    "majority": "majority",
}
COLUMNS = {
    "top1": "top-1",
    "top3": "top-3",
    "top5": "top-5",
    "cross_entropy": "cross-entropy",
    "calibration_error": "calibration error",
    "calibrated_cross_entropy": "cross-entropy, after",
    "calibrated_calibration_error": "calibration error, after",
}

TOP_COLUMNS = ("top1", "top3", "top5")

EvaluationReport = Mapping[str, Any]
CHOSEN_HERE = "The checkpoint was chosen on these same labels (--select)"


def write(report: EvaluationReport, trained: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the page of a report; `trained` are the lines of the run's metrics.jsonl."""
    page = _classifier(report) if report["phase"] == "finetune" else _language_model(report)
    if any("loss" in line for line in trained):
        page.heading("Training").figure(
            _curve(trained), "Loss of each update, and on the validation split at checkpoints."
        )
    page.facts(_facts(report)).write(path)


def _facts(report: EvaluationReport) -> dict[str, str]:
    provenance = report["provenance"]
    return {
        "run": f"{report['run']}@{report['step']}, {report['phase']}",
        "dataset": f"{report['dataset']['folder']}, {report['split']}, {report['dataset']['fingerprint'][:12]}",
        "bootstrap": f"95 % confidence intervals, {metrics.RESAMPLES:,} resamples of cases, seed {report['seed']}",
        "seconds": ", ".join(f"{part} {seconds:.1f}" for part, seconds in report["seconds"].items()),
        "versions": ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        "commit": provenance["commit"] or "none",
    }


def _classifier(report: EvaluationReport) -> Page:
    values, counts = report["metrics"], report["counts"]
    top1, top5 = values["top1"]["value"], values["top5"]["value"]
    page = Page(
        f"Template suggestions of {Path(report['run']).name}@{report['step']}",
        f"On {counts['contexts']:,} contexts of {counts['cases']:,} {report['split']} cases, the template sent "
        f"is suggested first in {top1:.1%} and among the first five in {top5:.1%}."
        + (f" {CHOSEN_HERE}, so these figures are optimistic." if report["chosen_here"] else ""),
    )
    _table(page, report)
    if report["verdict"]:
        _comparison(page, report)
    page.heading("Calibration").figure(
        _reliability(report["reliability"]),
        "Accuracy of the first suggestion against its mean probability; the area of a point grows with its contexts.",
    )
    page.figure(
        _by_template(report["templates"]),
        "Top-1 accuracy of each template against its training examples; the area of a point grows with its contexts, "
        "and the line is the mean of neighbouring templates.",
    )
    _confusions(page, report)
    return page


def _table(page: Page, report: EvaluationReport) -> None:
    rows = {"run": report} | report["baselines"]
    counts = report["counts"]
    cells = [
        [BASELINE_NAMES[name], *(Interval.from_json(rows[name]["metrics"][c]) for c in COLUMNS)]
        for name in BASELINE_NAMES
        if name in rows
    ]
    page.table(
        ["", *COLUMNS.values()],
        cells,
        f"95 % confidence intervals in brackets. Cross-entropy in nats. After: logits over {_temperature(report)}.",
        strong={0},
    )
    if counts["no_class"]:
        page.text(
            f"The template of {counts['no_class']:,} contexts is not a class of this run. They count as wrong, and the "
            "cross-entropy leaves them out."
        )


def differences(report: EvaluationReport) -> list[list[str]]:
    """Return the columns, and the difference of the run to each baseline and compared run, in percentage points."""
    baselines = {BASELINE_NAMES[n]: report["baselines"][n] for n in BASELINE_NAMES if n in report["baselines"]}
    rows = [
        [name, *(str(PairedDifference.from_json(each["difference"][top])) for top in TOP_COLUMNS)]
        for name, each in (baselines | report["compared"]).items()
    ]
    return [["difference to", *(COLUMNS[top] for top in TOP_COLUMNS)], *rows]


def _comparison(page: Page, report: EvaluationReport) -> None:
    columns, *rows = differences(report)
    page.heading("Comparison").text(" ".join(report["verdict"])).table(
        columns,
        rows,
        "Percentage points by which this run is ahead, paired by context, with 95 % confidence intervals. The sentence "
        "compares with the baseline that is strongest on the validation contexts, at the 5 % level.",
    )
    points = [
        [COLUMNS[top], point["labels"], str(PairedDifference.from_json(point["difference"]))]
        for top, curve in report["learning_curve"].items()
        for point in curve["points"]
    ]
    if points:
        page.table(
            ["", "labels", "ahead of that baseline"], points, "Learning curve: the same baseline on as many labels."
        )


def _temperature(report: EvaluationReport) -> str:
    fitted = report["counts"]["validation"]
    if not fitted:
        return "a temperature of 1, as there are no validation contexts to fit it on"
    return f"the temperature fitted on {fitted:,} validation contexts ({report['temperature']:.2f} for this run)"


def _reliability(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    with html.drawing() as (figure, axes):
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--")
        for (name, curve), colour, marker in zip(curves.items(), (html.ORANGE, html.BLUE), "so", strict=True):
            count, correct, probability = (np.array(curve[key]) for key in ("contexts", "correct", "probability"))
            some = count > 0
            x, y = probability[some] / count[some], correct[some] / count[some]
            area = 12 + 150 * count[some] / count.max()
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.6)
            axes.scatter(
                x, y, area, color=colour, alpha=0.75, marker=marker, linewidths=0, label=f"{name} temperature scaling"
            )
        axes.set(xlabel="probability of the first suggestion", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left")
    return figure


def _by_template(templates: Sequence[Mapping[str, Any]]) -> Figure:
    ordered = sorted(templates, key=lambda entry: entry["training"])
    training, contexts, hits = (
        np.array([entry[key] for entry in ordered], float) for key in ("training", "contexts", "hits")
    )
    with html.drawing() as (figure, axes):
        area = 8 + 150 * contexts / max(contexts.max(initial=1), 1)
        axes.scatter(np.maximum(training, 1), hits / contexts, area, color=html.BLUE, alpha=0.6, linewidths=0)
        parts = [part for part in np.array_split(np.arange(len(ordered)), 8) if len(part)]
        middle = [np.exp(np.log(np.maximum(training[part], 1)).mean()) for part in parts]
        mean = [hits[part].sum() / contexts[part].sum() for part in parts]
        axes.plot(middle, mean, color=html.ORANGE, linewidth=2)
        html.logarithmic(axes, "x")
        axes.set(ylim=(-0.03, 1.03), xlabel="training examples of the template", ylabel="top-1 accuracy")
    return figure


def _confusions(page: Page, report: EvaluationReport) -> None:
    pairs: list[list[TableCell]] = [
        [entry["label"], entry["suggested"], entry["count"]] for entry in report["confused"]
    ]
    if pairs:
        page.heading("Most confused").table(["sent", "suggested first", "contexts"], pairs)
    ranked = sorted(report["templates"], key=lambda entry: -entry["contexts"])
    rows: list[list[TableCell]] = [
        [entry["id"], entry["training"], entry["contexts"], entry["hits"] / entry["contexts"]] for entry in ranked
    ]
    page.table(
        ["template", "training examples", "contexts", "top-1"], rows, f"All {len(rows):,} templates", folded=True
    )


def _language_model(report: EvaluationReport) -> Page:
    values, counts = report["metrics"], report["counts"]
    masked = "bits_a_byte" not in values
    bits = "" if masked else f": {values['bits_a_byte']['value']:.3f} bits per byte"
    page = Page(
        f"Held-out loss of {Path(report['run']).name}@{report['step']}",
        f"On {_texts(report)}, {counts['tokens']:,} tokens, its loss is "
        f"{values['loss']['value']:.3f} nats per {'masked ' if masked else ''}token{bits}.",
    )
    rows: list[list[TableCell]] = [
        ["this run", *map(Interval.from_json, values.values()), counts["tokens"], counts["bytes"]]
    ]
    names = (
        ["", "nats per masked token", "tokens", "bytes"]
        if masked
        else ["", "nats per token", "bits per byte", "tokens", "bytes"]
    )
    page.table(names, rows, "95 % confidence intervals in brackets.", strong={0})
    return _zero_shot(page, report["zero_shot"]) if "zero_shot" in report else page


def _texts(report: EvaluationReport) -> str:
    counts = report["counts"]
    if "cases" in counts:
        return f"{counts['cases']:,} whole {report['split']} cases"
    return f"{counts['rows']:,} packed {report['split']} rows of other text"


def _zero_shot(page: Page, scores: Mapping[str, Any]) -> Page:
    names = {"likeliest": "by log-likelihood", "gained": "by gain in log-likelihood"}
    rows: list[list[TableCell]] = [
        [label, *map(Interval.from_json, scores[name].values())] for name, label in names.items()
    ]
    return page.heading("Zero-shot").table(
        ["", *(COLUMNS[name] for name in scores["gained"])],
        rows,
        f"After {scores['contexts']:,} contexts, the model ranks the text that was sent among the {scores['texts']:,} "
        "texts of all templates. It was trained on no labels. The gain is over the log-likelihood without the context.",
    )


def _curve(trained: Sequence[Mapping[str, Any]]) -> Figure:
    updates = [(line["step"], line["loss"]) for line in trained if "loss" in line]
    checked = [(line["step"], line["validation_loss"]) for line in trained if "validation_loss" in line]
    with html.drawing() as (figure, axes):
        axes.plot(*zip(*updates, strict=True), color=html.BLUE, linewidth=1, label="training")
        if checked:
            axes.plot(*zip(*checked, strict=True), "o-", color=html.ORANGE, markersize=4, label="validation")
        axes.set(xlabel="step", ylabel="loss, nats")
        axes.legend()
    return figure
