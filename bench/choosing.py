"""Compare a sentence encoder with nano and n-grams on star: `python -m bench.choosing`, for docs/choosing.md.

`JAXTEMPL_WEIGHTS=FOLDER JAXTEMPL_DATA=DATA .venv/bin/python -m bench.choosing` fine-tunes the encoder in FOLDER, such
as MiniLM, with 500, 2,000 and all labels. Pooling, rate and epochs are searched with 500 labels on validation cases;
the test cases are read once, with the chosen ones. An interrupted benchmark resumes; all files stay in `runs/choosing`.
`docs/benchmarks/star.json` has nano and n-grams on the same cases.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import common, runs
from jaxtempl.runs.run import Run
from jaxtempl.specs.interval import Interval

WORK = Path("runs/choosing")  # relative to the project root
CACHE = WORK / "compiled"
LENGTH = 256  # tokens that sentence-transformers gives MiniLM
LABELS = {500: 10, 2_000: 5, 0: 3}  # epochs by number of labels; 0 is all
SEARCH_LABELS = 500
TOP = ("top1", "top3", "top5")


class Setting(NamedTuple):
    """How the encoder is fine-tuned."""

    pooling: str
    learning_rate: str

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.pooling}-{self.learning_rate}"


GRID = [Setting(pooling, rate) for pooling in ("first", "mean") for rate in ("2e-4", "6e-4", "1.2e-3")]


def main() -> None:
    """Search, fine-tune with the chosen setting, and write docs/benchmarks/choosing.{json,md}."""
    weights, data = _weights(), common.data().resolve()
    os.chdir(common.ROOT)
    machine = common.machine(("jax", "flax", "optax", "tokenizers"))
    _prepare(weights, data)
    search = {setting: _validation(_finetune(weights, setting, SEARCH_LABELS)) for setting in GRID}
    chosen = max(GRID, key=lambda setting: search[setting]["top1"])
    cells = {labels: _test(_finetune(weights, chosen, labels)) for labels in LABELS}
    results = {
        "machine": machine,
        "weights": weights.name,
        "search": {setting.name: found for setting, found in search.items()},
        "chosen": chosen.name,
        "cells": {str(labels): cell for labels, cell in cells.items()},
        "star": _star(),
    }
    common.write("choosing", results, _page(machine, results))


def _weights() -> Path:
    folder = Path(os.environ.get("JAXTEMPL_WEIGHTS", ""))
    if not (folder / "model.safetensors").is_file():
        raise SystemExit("JAXTEMPL_WEIGHTS names no folder with model.safetensors; set it to a BERT folder")
    return folder.resolve()


def _prepare(weights: Path, data: Path) -> None:
    if not (WORK / "star").exists():
        splits = (f"--train={data}/star/train", f"--test={data}/star/dev", f"--templates={data}/star/templates.json")
        tokenizer = (f"--tokenizer={weights}/tokenizer.json", f"--length={LENGTH}")
        runs.command("prepare", *splits, *tokenizer, f"--out={WORK}/star", cache=CACHE)


def _finetune(weights: Path, setting: Setting, labels: int) -> Path:
    """Return the folder of a run, which is trained unless it is complete."""
    out = WORK / f"{setting.name}-{labels or 'all'}"
    flags = (
        f"--weights={weights}",
        f"--data={WORK}/star",
        f"--length={LENGTH}",
        f"--labels={labels}",
        f"--epochs={LABELS[labels]}",
        "--batch_size=32",
        f"--learning_rate={setting.learning_rate}",
        f"--pooling={setting.pooling}",
        f"--out={out}",
    )
    runs.command("finetune", *flags, cache=CACHE)
    return out


def _validation(out: Path) -> dict[str, float]:
    """Return the loss and accuracy on validation cases of the epoch with the least loss."""
    measured = [line for line in Run(out).metrics() if "validation_top1" in line]
    best = min(measured, key=lambda line: line["validation_loss"])
    return {"top1": best["validation_top1"], "loss": best["validation_loss"]}


def _test(out: Path) -> dict[str, Any]:
    report = runs.evaluate(out, WORK / "star", out / "evaluate-test", "--baselines=false", cache=CACHE)
    return {"seconds": runs.seconds(out), "metrics": {key: report["metrics"][key] for key in TOP}}


def _star() -> dict[str, dict[str, Any]]:
    """Return nano's and n-grams' accuracies by number of labels, of docs/benchmarks/star.json."""
    star = json.loads((common.RESULTS / "star.json").read_text())
    rows: dict[str, dict[str, Any]] = {str(labels): {} for labels in LABELS}
    for cell in star["cells"]:
        if str(cell["labels"]) in rows:
            rows[str(cell["labels"])][f"nano, {cell['start']}"] = {
                "metrics": cell["report"],
                "seconds": cell["seconds"],
            }
    for labels, baselines in star["baselines"].items():
        if labels in rows:
            rows[labels]["n-grams"] = {"metrics": baselines["ngrams"]["metrics"], "seconds": None}
    return rows


def _page(machine: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    lines = [
        "# A sentence encoder, nano and n-grams",
        "",
        f"`{results['weights']}`, a BERT folder, fine-tuned on star with windows of {LENGTH} tokens, next to the "
        "[table of nano](star.md) on the same test cases. Pooling and rate were chosen on validation cases with "
        f"{SEARCH_LABELS} labels: {results['chosen']}. Repeat with `python -m bench.choosing`.",
        "",
        "| labels | model | top-1 | top-3 | top-5 | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for labels, cell in results["cells"].items():
        rows = {**results["star"][labels], f"**{results['weights']}**": cell}
        name = f"{int(labels):,}" if labels != "0" else "all"
        lines += [f"| {name} | {model} | {_row(row)} |" for model, row in rows.items()]
    search = [f"| {name} | {found['top1']:.3f} | {found['loss']:.3f} |" for name, found in results["search"].items()]
    return "\n".join(
        [
            *lines,
            "",
            "nano's seconds are of one core, the encoder's of all.",
            "",
            f"The search on validation cases, {SEARCH_LABELS} labels:",
            "",
            "| pooling and rate | top-1 | loss |",
            "|---|---|---|",
            *search,
            "",
            common.describe(dict(machine)),
            "",
        ]
    )


def _row(cell: Mapping[str, Any]) -> str:
    scores: Sequence[str] = [format(Interval.from_json(cell["metrics"][key])) for key in TOP]
    seconds = "" if cell["seconds"] is None else f"{cell['seconds']:.0f}"
    return " | ".join([*scores, seconds])


if __name__ == "__main__":
    main()
