"""The configuration of `bin/evaluate`, `bin/suggest` and `bin/demo`."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxtempl.config.fields import argument, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a run on a split: write report.json, predictions.jsonl and a page."""

    run: str = option("", "RUN, RUN@STEP, RUN@last or RUN@best.")
    data: str = option("", "Folder of the dataset (default: the run's own).")
    split: Literal["train", "validation", "test"] = option("test", "Split of the dataset.")
    out: str = option("", "Folder of the report (default: RUN/evaluate-SPLIT).")
    baselines: bool = option(
        True, "Also fit and score three baselines: majority, previous template, and linear n-grams."
    )
    compare: tuple[str, ...] = option(
        (), "Other finetune runs, compared on the same contexts; other --labels give a learning curve."
    )
    zero_shot: int = option(
        0,
        "Number of contexts whose template an adapt run predicts by the likelihood of its text.",
        minimum=0,
        was="exam",
    )
    batch_size: int = option(64, "Rows of a batch.", minimum=1, was="batch")
    seed: int = option(0, "Seed of the bootstrap, the baselines and the zero-shot contexts.", minimum=0)
    verbose: bool = option(False, "Print the resolved config.", recorded=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuggestConfig:
    """Suggest the templates that an advocate most likely wants next in a case."""

    case: Path = argument('JSON file of {"messages": [{"role", "text"}, ...]}; - reads standard input.')
    bundle: str = option("", "Folder of a bundle that bin/convert onnx wrote; needs no JAX.")
    run: str = option("", "A finetune RUN, RUN@STEP, RUN@last or RUN@best, instead of a bundle.")
    k: int = option(5, "Number of templates.", minimum=1)
    json: bool = option(False, "Print JSON instead of a table.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Run the whole path on the embedded model and real cases, up to the advocate's console."""

    out: str = option("", "Folder for everything that is written (default: demo, with --quick demo-quick).")
    quick: bool = option(False, "Run the same path in under a minute on few cases; its numbers mean nothing.")
    serve: bool = option(False, "Keep the console's server running until Ctrl-C.")
