"""Write docs/benchmarks/nano.{json,md,png}: the comparisons, the overlap with star, and the training of nano."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench import common, runs
from bench.nano import base, compare, corpus
from bench.nano.candidates import CANDIDATES
from bench.nano.corpus import LENGTH, OVERLAP_WORDS, ROWS, WORK
from jaxtempl import files
from jaxtempl.reports import html
from jaxtempl.runs.run import Run
from jaxtempl.specs.interval import Interval

SHOWN = {
    "books": "books and textbooks",
    "books and technical": "and documents, IRC",
    "dialogue": "customer-service dialogues",
}
MILLION = 1e6


def write() -> None:
    """Write the page of what is done so far."""
    results: dict[str, Any] = {
        "machine": common.machine(("jax", "flax", "optax", "grain", "tokenizers")),
        "sources": {name: source._asdict() for name, source in corpus.SOURCES.items()},
        "overlap": _overlap(),
        "candidates": {name: found for name in CANDIDATES if (found := _read(compare.folder(name)))},
        "texts": {kind: found for kind in compare.TEXTS if (found := _read(compare.text_folder(kind)))},
        "base": _training(),
    }
    html.save_png(_figure(results["base"]["losses"]), common.RESULTS / "nano.png")
    common.write("nano", results, _page(results))


def _overlap() -> dict[str, float]:
    """Return the overlap of each source with star, which takes minutes to count."""
    path = WORK / "overlap.json"
    if not path.exists():
        files.write_json(path, corpus.overlap(common.data()))
    return json.loads(path.read_text())


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / compare.RESULT
    return json.loads(path.read_text()) if path.exists() else None


def _training() -> dict[str, Any]:
    """Return the training of the published branch: its tokens, seconds, losses, and measures on star."""
    branch = base.newest_branch()
    updates = runs.steps(branch)
    return {
        "tokens": len(updates) * ROWS * LENGTH,
        "seconds": sum(line["seconds"] for line in updates),
        "losses": [
            (line["step"] * ROWS * LENGTH, line["validation_loss"])
            for line in Run(branch).metrics()
            if "validation_loss" in line
        ],
        "annealed_from": int(branch.name.split("-")[1]) * ROWS * LENGTH,
        **compare.measure(branch, branch),
    }


def _figure(losses: Iterable[tuple[int, float]]) -> Figure:
    with html.drawing(height=3.4, width=5.6) as (figure, axes):
        axes.plot([tokens / MILLION for tokens, _ in losses][1:], [loss for _, loss in losses][1:], marker=".")
        axes.set(xlabel="million tokens read", ylabel="held-out loss (nats a token)", title="Pre-training of nano")
    return figure


def _page(results: Mapping[str, Any]) -> str:
    found, chosen = results["base"], CANDIDATES[base.CHOSEN]
    return "\n".join(
        [
            "# nano: how the base model of this package was trained",
            "",
            f"nano has {chosen.layers} layers of {chosen.hidden} dims and {chosen.vocabulary:,} entries. It has read "
            f"{found['tokens'] / MILLION:.1f} M tokens: "
            f"{found['annealed_from'] / MILLION:.1f} M at a constant learning rate, the rest while the rate fell to "
            f"zero, in {found['seconds'] / 3600:.1f} hours on a machine that did other work too. "
            "Repeat with `python -m bench.nano`, stage by stage.",
            "",
            "![Held-out loss by tokens](nano.png)",
            "",
            *_sources(results),
            "",
            "## Shapes and vocabularies",
            "",
            f"Each candidate was trained for {compare.SECONDS:.0f} seconds of CPU time on all sources, then measured "
            "on star's dev split: held-out bits a byte, and top-1/3/5 after fine-tuning on few labels. "
            "95 % intervals are from a bootstrap over cases and leave out the variance between seeds.",
            "",
            *_measures({name: (name, entry) for name, entry in results["candidates"].items()}),
            "",
            *_texts(results["texts"]),
            "## The published model",
            "",
            *_measures({"nano": ("nano", found)}),
            "",
            common.describe(results["machine"]),
            "",
        ]
    )


def _sources(results: Mapping[str, Any]) -> list[str]:
    return [
        "## Sources",
        "",
        f"Overlap is the share of star's distinct {OVERLAP_WORDS}-grams of words, of all its splits, that a source "
        "contains. Star itself would have 1.",
        "",
        "| source | share of the rows | overlap with star |",
        "|---|---|---|",
        *(
            f"| {name} | {source['share']:.1%} | {results['overlap'][name]:.2%} |"
            for name, source in results["sources"].items()
        ),
    ]


def _texts(texts: Mapping[str, Any]) -> list[str]:
    if not texts:
        return []
    return [
        "## Kinds of text",
        "",
        "The chosen candidate, trained on one kind of text alone with as many updates.",
        "",
        *_measures({kind: (SHOWN[kind], entry) for kind, entry in texts.items()}),
        "",
    ]


def _measures(rows: Mapping[str, tuple[str, Mapping[str, Any]]]) -> list[str]:
    labels = [f"{count:,} labels: {top}" for count in compare.FINETUNE for top in ("top-1", "top-3", "top-5")]
    return [
        f"| | M tokens | bits a byte | {' | '.join(labels)} |",
        "|---" * (3 + len(labels)) + "|",
        *(f"| {name} | {entry['tokens'] / MILLION:.1f} | {_scores(entry)} |" for name, entry in rows.values()),
    ]


def _scores(entry: Mapping[str, Any]) -> str:
    cells = [f"{entry['star_bits_a_byte']:.3f}"]
    for by_metric in entry["labels"].values():
        cells += [format(Interval.from_json(by_metric[key])) for key in ("top1", "top3", "top5")]
    return " | ".join(cells)
