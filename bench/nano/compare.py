"""Compare the candidates for nano at equal CPU time, and kinds of text at equal tokens.

Both are measured by the held-out loss on star, and the accuracy there after fine-tuning on few labels.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import common, runs, steps
from bench.nano import corpus
from bench.nano.candidates import CANDIDATES, Candidate, pretrain
from bench.nano.corpus import CACHE, LENGTH, ROWS, WORK
from jaxtempl import files

SECONDS = 600.0  # CPU time of a candidate's pre-training
FINETUNE = {500: ("--epochs=10", "--learning_rate=3e-3"), 2_000: ("--epochs=4", "--learning_rate=3e-3")}
RESULT = "result.json"
BOOKS = ("books", "openstax")
TEXTS = {  # sources of each kind; candidates are trained on all
    "books": BOOKS,
    "books and technical": (*BOOKS, "officedocs", "ubuntu_irc"),
    "dialogue": ("sgd", "taskmaster4", "multidogo"),
}


def folder(name: str) -> Path:
    """Return the folder of a candidate."""
    return WORK / "compare" / name


def compare(name: str) -> dict[str, Any]:
    """Return what a candidate learns in SECONDS of CPU time; a repeated call resumes."""
    candidate, out = CANDIDATES[name], folder(name)
    cost = out / "cost.json"
    if not cost.exists():
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(cost, common.run_child("bench.nano", "cost", name))
    update = json.loads(cost.read_text())["seconds"]
    updates = round(SECONDS / update)
    pretrain(candidate, out / "base", updates)
    result = {"update_seconds": update, "tokens": updates * ROWS * LENGTH, **measure(out / "base", out)}
    files.write_json(out / RESULT, result)
    return result


def compare_texts(name: str) -> None:
    """Train a candidate on each kind of text alone, with as many updates as in `compare`."""
    tokens = compare(name)["tokens"]
    for kind, sources in TEXTS.items():
        out = text_folder(kind)
        pretrain(CANDIDATES[name], out / "base", tokens // (ROWS * LENGTH), sources=sources)
        files.write_json(out / RESULT, {"tokens": tokens, **measure(out / "base", out)})


def text_folder(kind: str) -> Path:
    """Return the folder of a kind of text."""
    return WORK / "texts" / kind.replace(" ", "-")


def measure(base: Path, out: Path) -> dict[str, Any]:
    """Return a base's held-out bits a byte on star, and its accuracies after each fine-tuning of FINETUNE."""
    loss = runs.evaluate(f"{base}@last", corpus.star(), out / "loss-star", cache=CACHE)["metrics"]
    return {
        "star_bits_a_byte": loss["bits_a_byte"]["value"],
        "labels": {labels: _finetune(base, out / f"star-{labels}", labels) for labels in FINETUNE},
    }


def _finetune(base: Path, out: Path, labels: int) -> dict[str, Any]:
    flags = (f"--from={base}", f"--data={corpus.star()}", f"--labels={labels}", *FINETUNE[labels], f"--out={out}")
    runs.command("finetune", *flags, cache=CACHE)
    report = runs.evaluate(out, corpus.star(), out / "evaluate-test", "--baselines=false", cache=CACHE)
    return {key: report["metrics"][key] for key in ("top1", "top3", "top5", "cross_entropy")}


def update_seconds(candidate: Candidate, repeats: int = 12) -> float:
    """Return the CPU seconds of an update: the least of some, which other processes disturb."""
    side = steps.jaxtempl_of(candidate.architecture, ROWS, "none", LENGTH)
    tokens, seconds = np.ones((ROWS, LENGTH), np.uint16), list[float]()
    for _ in range(repeats):
        start = time.process_time()
        side.step(tokens)
        seconds.append(time.process_time() - start)
    return min(seconds)
