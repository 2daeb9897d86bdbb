"""Reproduce the paper's Table 3 on star with nano: the gain from adaptation at each number of labels.

`JAXTEMPL_DATA=DATA .venv/bin/python -m bench.star` runs the project's commands, one on each core. An interrupted
benchmark resumes; with `--done` it writes the table of the completed cells. All files stay in `runs/star`.
"""

import argparse
import concurrent.futures
import os
import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import common, runs
from jaxtempl.config.sizes import tokenizer_path
from jaxtempl.data import loader
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.reports import html
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window

WORK = Path("runs/star")  # relative to the project root
CACHE = WORK / "compiled"  # the cells have the same shapes
# Shares of the rows drawn: star twice over, each companion less than once, 18.8 M tokens in all.
MIXTURE = {"star": 0.40, "sgd": 0.45, "taskmaster4": 0.10, "multidogo": 0.05}
ADAPT = ("--steps=4600", "--batch_size=8", "--learning_rate=1.5e-3")
# Settings by number of labels (0: all); the longest first.
FINETUNE = {
    0: ("--epochs=3", "--learning_rate=1e-3", "--max_grad_norm=inf", "--beta2=0.999", "--weight_decay=0.1"),
    8_000: ("--epochs=2", "--learning_rate=2e-3"),
    2_000: ("--epochs=4", "--learning_rate=3e-3"),
    500: ("--epochs=10", "--learning_rate=3e-3"),
}
RANDOM_ALL = (
    "--epochs=2",
    "--learning_rate=2e-3",
)  # from random weights with all labels; not tuned
STARTS = {
    "adapted": [f"--from={WORK}/adapted"],
    "base": ["--size=nano"],
    "random": ["--weights=random", "--size=nano"],
}
# Results of a reference with transformers and torch (same data, window and batch; 2,000 labels for 4 epochs).
REFERENCE = {
    ("base", 2_000): (0.615, 0.770, 0.819),
    ("adapted", 2_000): (0.654, 0.808, 0.860),
    ("base", 0): (0.785, 0.936, 0.962),
    ("adapted", 0): (0.785, 0.933, 0.963),
}
TOP = ("top1", "top3", "top5")
SHOWN = {"random": "nano, random weights", "base": "nano, as pre-trained", "adapted": "nano, adapted"}
BASELINES = {"majority": "majority class", "previous_template": "previous template", "ngrams": "linear n-grams"}


class Cell(NamedTuple):
    """A fine-tuning run and its evaluation."""

    start: str
    labels: int
    report: dict[str, Any]
    seconds: float
    tokens: float


def main() -> None:
    """Prepare, train and evaluate, and write docs/benchmarks/star.{json,md,png}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--done", action="store_true", help="train nothing; write the completed cells")
    done = parser.parse_args().done
    data = common.data().resolve()
    os.chdir(common.ROOT)
    machine = common.machine(("jax", "flax", "optax", "grain", "tokenizers"))
    _prepare(data)
    _adapt()
    cells = _cells(done)
    losses = {
        name: _report(f"adapted@{step}", WORK / f"loss-{name}") for name, step in (("base", 0), ("adapted", "last"))
    }
    _write(machine, cells, losses, _padding())


def _mixture() -> dict[str, float]:
    """Return the available part of MIXTURE: bench/data cannot make every companion; shares stay relative."""
    return {name: share for name, share in MIXTURE.items() if (WORK / "data" / name).exists()}


def _prepare(data: Path) -> None:
    for name in MIXTURE:
        if not (data / name).exists():
            print(f"{data / name} does not exist, so the mixture omits it", flush=True)
            continue
        out = WORK / "data" / name
        if out.exists():
            continue
        test = [f"--test={data}/star/dev", f"--templates={data}/star/templates.json"] if name == "star" else []
        runs.command(
            "prepare", f"--train={data}/{name}/train", *test, "--size=nano", "--length=512", f"--out={out}", cache=CACHE
        )


def _adapt() -> None:
    mixture = ",".join(f"{WORK}/data/{name}:{share:.2f}" for name, share in _mixture().items())
    runs.command("adapt", "--size=nano", f"--data={mixture}", *ADAPT, f"--out={WORK}/adapted", cache=CACHE)


def _cells(done: bool) -> list[Cell]:
    """Return all cells, run one at a time on each core: nano is too small to keep two cores busy."""
    cores: queue.Queue[int] = queue.Queue()
    for core in os.sched_getaffinity(0):
        cores.put(core)
    wanted = [(start, labels) for labels in FINETUNE for start in STARTS]
    wanted = [cell for cell in wanted if not done or (_folder(*cell) / "evaluate-test" / "report.json").exists()]
    with concurrent.futures.ThreadPoolExecutor(cores.qsize()) as pool:
        return list(pool.map(lambda cell: _on_a_core(cell[0], cell[1], cores), wanted))


def _on_a_core(start: str, labels: int, cores: "queue.Queue[int]") -> Cell:
    core = cores.get()
    try:
        return _cell(start, labels, core)
    finally:
        cores.put(core)


def _cell(start: str, labels: int, core: int) -> Cell:
    """Fine-tune and evaluate unless that is done; evaluate the baselines once for each number of labels."""
    out = _folder(start, labels)
    settings = RANDOM_ALL if (start, labels) == ("random", 0) else FINETUNE[labels]
    flags = [f"--labels={labels}", *settings, f"--data={WORK}/data/star", f"--out={out}"]
    runs.command("finetune", *STARTS[start], *flags, core=core, cache=CACHE)
    report = _report(out.name, out / "evaluate-test", f"--baselines={str(start == 'base').lower()}", core=core)
    tokens = sum(line["tokens_per_second"] * line["seconds"] for line in runs.steps(out))
    return Cell(start, labels, report, runs.seconds(out), tokens)


def _folder(start: str, labels: int) -> Path:
    return WORK / f"{start}-{labels or 'all'}"


def _report(run: str, out: Path, *flags: str, core: int | None = None) -> dict[str, Any]:
    return runs.evaluate(WORK / run, WORK / "data" / "star", out, *flags, cache=CACHE, core=core)


def _padding() -> dict[str, float]:
    """Return the share of padding in star's labelled batches, and of the tokens that length buckets save."""
    window = Window(Tokenizer(tokenizer_path("nano")))
    contexts = LabelledContexts.read(Dataset(WORK / "data" / "star"), "train", window)
    stream = loader.batches_from(loader.labelled_batches(contexts, 32, 8, 0), 0, 200)
    drawn = [microbatch for batch in stream for microbatch in batch]
    real = sum(int(m["lengths"].sum()) for m in drawn)
    computed = sum(m["tokens"].size for m in drawn)
    whole = 200 * 32 * window.limit
    return {"padding": 1 - real / computed, "padding_at_512": 1 - real / whole, "spared": 1 - computed / whole}


def _write(machine: dict[str, Any], cells: Sequence[Cell], losses: dict[str, Any], padding: dict[str, float]) -> None:
    results = {
        "machine": machine,
        "settings": {"mixture": _mixture(), "adapt": ADAPT, "finetune": {str(k): v for k, v in FINETUNE.items()}},
        "language_model": {name: report["metrics"] for name, report in losses.items()},
        "adapt_seconds": runs.seconds(WORK / "adapted"),
        "cells": [{**c._asdict(), "report": c.report["metrics"]} for c in cells],
        "baselines": {str(c.labels): c.report["baselines"] for c in cells if c.report["baselines"]},
        "padding": padding,
    }
    html.save_png(_figure(cells), common.RESULTS / "star.png")
    common.write("star", results, _page(machine, cells, results))


def _page(machine: dict[str, Any], cells: Sequence[Cell], results: dict[str, Any]) -> str:
    loss = {name: metrics["loss"]["value"] for name, metrics in results["language_model"].items()}
    bits = {name: metrics["bits_a_byte"]["value"] for name, metrics in results["language_model"].items()}
    padding = results["padding"]
    hours = (sum(cell.seconds for cell in cells) + results["adapt_seconds"]) / 3600
    return "\n".join(
        [
            "# Star: the gain from adaptation",
            "",
            "Real customer-service dialogues (RasaHQ/STAR) and the 3 M-parameter `nano` model, trained on star's train",
            "split and evaluated on its dev split. Intervals are 95 %, from a bootstrap over cases.",
            "Repeat with `python -m bench.star`.",
            "",
            (common.RESULTS / "star.notes.md").read_text().strip(),
            "",
            "![Accuracy against number of labels](star.png)",
            "",
            *_table(cells),
            "",
            "Reference: transformers and torch with the same data and window (2,000 labels for 4 epochs, all labels",
            "for 2; here 3). Seconds are training time only, on one core; tokens include padding.",
            "",
            "## Adaptation",
            "",
            f"{', '.join(ADAPT)} over {', '.join(f'{n} {s:.0%}' for n, s in _mixture().items())} took "
            f"{results['adapt_seconds'] / 60:.0f} minutes. Held-out loss on star dev went from {loss['base']:.2f} to "
            f"{loss['adapted']:.2f} nats a token ({bits['base']:.2f} to {bits['adapted']:.2f} bits a byte); "
            "the reference went from 6.59 to 0.83.",
            "",
            "## Padding",
            "",
            f"Labelled batches bucketed by length (64, 128, 256, 512) hold {padding['padding']:.0%} padding; padded to "
            f"512 they would hold {padding['padding_at_512']:.0%}. This saves {padding['spared']:.0%} of the tokens "
            "computed.",
            "",
            f"All trainings together took {hours:.1f} hours. {common.describe(machine)}",
            "",
        ]
    )


def _table(cells: Sequence[Cell]) -> list[str]:
    columns = ("labels", "model", "top-1", "top-3", "top-5", "cross-entropy", "seconds", "M tokens", "reference")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for labels in sorted({cell.labels for cell in cells}, key=lambda n: n or np.inf):
        group = [cell for cell in cells if cell.labels == labels]
        found = next((cell.report["baselines"] for cell in group if cell.report["baselines"]), {})
        name = f"{labels:,}" if labels else "all"
        lines += [f"| {name} | {BASELINES[key]} | {_scores(found[key]['metrics'])} | | | |" for key in found]
        lines += [
            f"| {name} | **{SHOWN[c.start]}** | {_scores(c.report['metrics'])} | {c.seconds:.0f} | "
            f"{c.tokens / 1e6:.1f} | {' / '.join(f'{v:.3f}' for v in REFERENCE.get((c.start, labels), ()))} |"
            for c in group
        ]
    return lines


def _scores(metrics: dict[str, Any]) -> str:
    top = [f"{m['value']:.3f} ({m['low']:.3f}-{m['high']:.3f})" for m in (metrics[name] for name in TOP)]
    return " | ".join([*top, f"{metrics['cross_entropy']['value']:.3f}"])


def _figure(cells: Sequence[Cell]) -> Figure:
    """Plot top-1 and top-5 against the number of labels, one line for each start, n-grams dashed."""
    with html.drawing(height=3.8, width=9.2) as (figure, _):
        figure.clear()
        for axes, name, title in zip(figure.subplots(1, 2), ("top1", "top5"), ("Top-1", "Top-5"), strict=True):
            _panel(axes, cells, name)
            html.logarithmic(axes, "x")
            axes.set(xlabel="labels", title=title)
        figure.axes[0].legend(loc="lower right")
    return figure


def _panel(axes: Axes, cells: Sequence[Cell], name: str) -> None:
    every = len(Dataset(WORK / "data" / "star").labels("train").slot)
    for start in dict.fromkeys(cell.start for cell in cells):
        line = sorted((cell.labels or every, cell.report["metrics"][name]) for cell in cells if cell.start == start)
        values = np.array([[m["value"], m["value"] - m["low"], m["high"] - m["value"]] for _, m in line]).T
        axes.errorbar([x for x, _ in line], values[0], yerr=values[1:], marker="o", capsize=3, label=SHOWN[start])
    with_baselines = [cell for cell in cells if cell.report["baselines"]]
    x = [cell.labels or every for cell in with_baselines]
    y = [cell.report["baselines"]["ngrams"]["metrics"][name]["value"] for cell in with_baselines]
    axes.plot(x, y, "--", color="gray", label=BASELINES["ngrams"])


if __name__ == "__main__":
    main()
