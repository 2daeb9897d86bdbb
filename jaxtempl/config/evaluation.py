"""The settings of `bin/evaluate`, `bin/suggest` and `bin/demo`."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxtempl.config.fields import argument, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A run on a split: report.json, predictions.jsonl and a page."""

    run: str = option("", "RUN, RUN@STEP, RUN@last or RUN@best")
    data: Path = option(Path("data"), "dataset")
    split: Literal["train", "validation", "test"] = option("test", "side of the dataset")
    out: str = option("", "folder of the report (default: RUN/evaluate-SPLIT)")
    baselines: bool = option(True, "fit and score majority, previous template and linear n-grams beside the run")
    zero_shot: int = option(
        0, "of an adapt run: contexts whose template is predicted by the likelihood of its text", least=0, was="exam"
    )
    batch_size: int = option(64, "rows at a time", least=1, was="batch")
    seed: int = option(0, "of the bootstrap, the baselines and the exam's contexts", least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuggestConfig:
    """A case in, the templates an advocate most likely wants next out."""

    case: Path = argument('JSON file of {"messages": [{"role", "text"}, ...]}; - reads standard input')
    bundle: str = option("", "a bundle that bin/convert onnx made; needs no JAX")
    run: str = option("", "RUN, RUN@STEP, RUN@last or RUN@best of a finetune, in place of a bundle")
    k: int = option(5, "how many templates", least=1)
    json: bool = option(False, "print JSON instead of a table")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole path on the embedded model and synthetic cases, ending with the advocate's console."""

    out: Path = option(Path("demo"), "folder for all that is made")
    serve: bool = option(False, "leave the server of the console running until Ctrl-C")
