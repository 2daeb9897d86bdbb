"""The settings of `bin/scaling`."""

import dataclasses
from pathlib import Path

from jaxtempl.config.fields import DeviceName, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingRunConfig:
    """A study: many sizes, checkpoints, label counts and corpora, each cell fine-tuned and measured."""

    study: str = option("laptop", "its file, or the name of one of configs/studies/")
    data: str = option("", "folder that the files of its datasets are below (default: $JAXTEMPL_DATA)")
    out: str = option("", "folder of all that is made (default: runs/scaling/NAME)")
    processes: int = option(
        0, "commands that run at a time, each on its share of the cores (default: one a core)", least=0
    )
    sizes: tuple[str, ...] = option((), "of the study's sizes, these alone")
    shard: str = option("1/1", "I/N: the I-th of N parts of the cells, for N such commands that share --out")
    plan: bool = option(False, "run nothing; print the cells, the commands and what is known of their time")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingAlignConfig:
    """How near a corpus is to the task: the share of the task's word 3-grams that the corpus has."""

    data: str = option("data", "the corpus: datasets as DIR[:WEIGHT],...")
    task: Path = option(Path("data"), "dataset of the task")
    size: str = option("", "whose tokenizer the rows are of (default: Pythia's)")
    out: Path = option(Path("alignment.json"), "file to write")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingReportConfig:
    """A study's results -> a page: curves, the paper's figures, and what each law of scaling says of them."""

    runs: tuple[str, ...] = option((), "folders of studies, as bin/scaling run made them")
    match: str = option("", "SIZE@TOKENS: tell, too, how many tokens other sizes need for what this one has then")
    out: str = option("", "folder of the report (default: report/ in the first study's)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingAdviseConfig:
    """What to train next: which size, how long to adapt it, on how many labels, and what twice as much would buy."""

    runs: tuple[str, ...] = option((), "folders of studies, as bin/scaling run made them")
    tokens: int = option(0, "tokens of domain text that there are (default: as many as in the study)", least=0)
    labels: int = option(0, "labels that there are (default: as many as in the study)", least=0)
    gpu_hours: float = option(24.0, "hours of one device for adaptation and fine-tuning", least=0)
    latency_ms: float = option(100.0, "time that an answer may take on the device that serves", least=0)
    device: DeviceName = option("a10", "that trains and serves")
    mfu: float = option(0.4, "share of the device's peak that training reaches", least=0)
    price_label: float = option(0.0, "dollars for one more label (default: not told)", least=0)
    price_gpu_hour: float = option(0.0, "dollars for an hour of the device (default: an assumed one)", least=0)
    extrapolate: float = option(
        4.0, "times the greatest size, tokens and labels measured that may be spoken of", least=1
    )
    json: bool = option(False, "print JSON")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingFilterConfig:
    """Takes the passages of other text that are most like the domain's, for those with few transcripts."""

    documents: tuple[str, ...] = option((), 'files, folders or URLs of other text ({"id", "text"} a line)')
    like: Path = option(Path("data"), "dataset of the domain, whose training cases say what is like it")
    keep: float = option(0.1, "share of the passages to keep", least=0)
    passage: int = option(1000, "characters of a passage, to the end of its paragraph", least=100)
    max_bad: float = option(0.01, "share of bad records above which nothing is written", least=0)
    seed: int = option(0, "of what the classifier sees", least=0)
    overwrite: bool = option(False, "replace --out when it exists")
    out: Path = option(Path("filtered.jsonl.gz"), "file to write, as bin/prepare --documents reads it")
