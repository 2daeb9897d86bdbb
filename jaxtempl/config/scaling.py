"""The configuration of `bin/scaling`."""

import dataclasses
from pathlib import Path

from jaxtempl.config.fields import DeviceName, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingRunConfig:
    """Run a study: fine-tune and evaluate many sizes, checkpoints, label counts and corpora."""

    study: str = option("laptop", "Study file, or the name of one of configs/studies/.")
    data: str = option("", "Folder that the study's data files are in (default: $JAXTEMPL_DATA).")
    out: str = option("", "Folder of all results (default: runs/scaling/NAME).")
    processes: int = option(
        0, "Number of commands that run at once, each on its share of the cores (default: one per core).", minimum=0
    )
    sizes: tuple[str, ...] = option((), "Sizes to run, a subset of the study's (default: all).")
    shard: str = option("1/1", "I/N: run the I-th of N parts of the cells; the N commands share --out.")
    plan: bool = option(False, "Run nothing; print the cells, the commands and the predicted times.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingAlignConfig:
    """Measure how close a corpus is to the task: the share of the task's word 3-grams that the corpus contains."""

    data: str = option("data", "Datasets of the corpus, as DIR[:WEIGHT],....")
    task: Path = option(Path("data"), "Dataset of the task.")
    size: str = option("", "Size whose tokenizer packed the rows (default: Pythia's tokenizer).")
    tokenizer: str = option(
        "", "Tokenizer that packed the rows, instead of --size: a tokenizer.json, a vocab.txt, or a folder with one."
    )
    out: Path = option(Path("alignment.json"), "File to write.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingReportConfig:
    """Write a page about studies: curves, the paper's figures, and the fit of each scaling law."""

    runs: tuple[str, ...] = option((), "Folders of studies that bin/scaling run wrote.")
    match: str = option("", "SIZE@TOKENS: also report how many tokens other sizes need to match this one.")
    out: str = option("", "Folder of the report (default: report/ in the first study's folder).")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingAdviseConfig:
    """Recommend the next training: size, adaptation tokens, labels, and the value of twice as many."""

    runs: tuple[str, ...] = option((), "Folders of studies that bin/scaling run wrote.")
    tokens: int = option(0, "Available tokens of domain text (default: as many as in the study).", minimum=0)
    labels: int = option(0, "Available labels (default: as many as in the study).", minimum=0)
    gpu_hours: float = option(24.0, "Device hours for adaptation and fine-tuning together.", minimum=0)
    latency_ms: float = option(100.0, "Maximum milliseconds of a response on the serving device.", minimum=0)
    device: DeviceName = option("a10", "Device that trains and serves.")
    mfu: float = option(0.4, "Share of the device's peak FLOP/s that training reaches.", minimum=0)
    price_label: float = option(0.0, "Dollars for one more label (default: not reported).", minimum=0)
    price_gpu_hour: float = option(0.0, "Dollars for one device hour (default: an assumed price).", minimum=0)
    extrapolate: float = option(
        4.0, "Maximum extrapolation, as a multiple of the largest measured size, tokens and labels.", minimum=1
    )
    json: bool = option(False, "Print JSON.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingFitConfig:
    """Fit a scaling law to a table: parameters with intervals, hold-out error, a verdict, figures and JSON."""

    table: Path = option(Path("table.csv"), "CSV or Parquet file with a row for each measurement.")
    law: str = option("chinchilla", "Law (bin/scaling laws lists them).")
    x: tuple[str, ...] = option((), "Columns of the law's variables, in its order (default: the variables' names).")
    y: str = option("loss", "Column that the law predicts.")
    group: str = option("", "Column of the runs, whose points may share an error (default: run, if there is one).")
    holdout: str = option(
        "", "Condition of the points to predict from the others, such as 'tokens>1e9' (default: the largest values)."
    )
    delta: float = option(0.0, "Threshold of the Huber loss (default: 1.345 standard deviations).", minimum=0)
    counted: str = option(
        "not stated", "Parameters that the column counts, such as all or those without embeddings; for the report."
    )
    schedule: str = option("not stated", "Learning-rate schedule of the points, for the report.")
    seed: int = option(0, "Seed of starts and resamples.", minimum=0)
    out: Path = option(Path("fit"), "Folder to write: index.html, fit.json and figures.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingLawsConfig:
    """List the laws with their formulas, sources and the least data that they need."""

    json: bool = option(False, "Print JSON.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingFilterConfig:
    """Select the passages of other text that are most similar to the domain, for companies with few transcripts."""

    documents: tuple[str, ...] = option((), 'Files, folders or URLs of other text ({"id", "text"} a line).')
    like: Path = option(Path("data"), "Dataset of the domain, whose training cases define similarity.")
    keep: float = option(0.1, "Share of the passages to keep.", minimum=0)
    passage: int = option(1000, "Characters of a passage, extended to the end of its paragraph.", minimum=100)
    max_bad: float = option(0.01, "Maximum share of bad records; above it nothing is written.", minimum=0)
    seed: int = option(0, "Seed of the classifier's training sample.", minimum=0)
    overwrite: bool = option(False, "Replace --out if it exists.")
    out: Path = option(Path("filtered.jsonl.gz"), "File to write, for bin/prepare --documents.")
