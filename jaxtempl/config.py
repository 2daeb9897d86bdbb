"""One frozen dataclass a command; YAML under flags; an unknown key is answered with the nearest names.

A value comes from the first of: a flag, the user's `--config` file, the recipe, the size's file, the command's
file in `configs/`, the dataclass. So what a run did is one resolved dataclass, printed and kept in the run.
"""

import argparse
import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml

from jaxtempl.errors import UsageError, UserError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
ASSETS = Path(__file__).resolve().parent / "assets"

Config = TypeVar("Config")
DeviceName = Literal["none", "a10", "a100-40", "a100-80", "h100", "h200", "v5e", "v5p"]


def option(default: Any, help: str, flag: str = "", least: int | None = None, told: bool = True) -> Any:
    """A field with a default, the line that `--help` shows for it, its flag if that is not its name, and its bound.

    One that is not `told` says nothing of a run, and `dump` leaves it out.
    """
    known = {"help": help, "flag": flag, "least": least}
    metadata = {k: v for k, v in known.items() if v not in ("", None)}
    return dataclasses.field(default=default, metadata={**metadata, "told": told})


def argument(help: str) -> Any:
    """A field that is given by place, not by name."""
    return dataclasses.field(metadata={"help": help, "positional": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Transcripts -> a dataset: cases, labels and packed language-model rows."""

    transcripts: tuple[str, ...] = option((), "files, folders or URLs of cases, split by a hash of case_id")
    train: tuple[str, ...] = option((), "cases of the training side, when the split is given")
    validation: tuple[str, ...] = option((), "cases held out from training (default: 2 % of --train)")
    test: tuple[str, ...] = option((), "cases of the test side, when the split is given")
    documents: tuple[str, ...] = option((), 'other text ({"id", "text"} a line) for packed rows alone')
    templates: str = option("", 'JSON file of [{"id", "text", "active"}]; others are taken from the transcripts')
    label: str = option("template", "the key of a message that names its template")
    size: str = option("", "pack rows with this size's tokenizer (default: Pythia's)")
    tokenizer: str = option("", "pack rows with this tokenizer.json instead")
    fractions: tuple[float, ...] = option((0.49, 0.01, 0.5), "train, validation and test shares of --transcripts")
    min_count: int = option(1, "training examples a template needs to be a class", least=1)
    max_bad: float = option(0.01, "share of bad records above which nothing is written", least=0)
    length: int = option(2048, "tokens of a packed row", least=2)
    seed: int = option(0, "order of the documents in the packed rows", least=0)
    overwrite: bool = option(False, "replace --out when it exists")
    out: Path = option(Path("data"), "folder of the dataset")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What both trainings share."""

    out: str = option("", "folder of the run (default: runs/COMMAND-SIZE)")
    weights: str = option("", "a Hugging Face folder or hub id, or `random` (default: the size's published ones)")
    revision: str = option("", "branch, tag or commit of the hub id")
    size: str = option("", "one of configs/sizes/")
    recipe: Literal["default", "paper"] = option("default", "paper: Table 1 or 2 to the letter, float16 included")
    steps: int = option(0, "updates (default: as many as --epochs gives)", least=0)
    epochs: float = option(1.0, "passes over the data", least=0)
    batch: int = option(0, "rows an update", least=1)
    accumulate: int = option(0, "pieces that an update's rows are computed in (default: of 8,192 tokens)", least=0)
    rate: float = option(0.0, "peak learning rate", least=0)
    schedule: Literal["cosine", "linear"] = option("cosine", "decay of the rate to zero after warm-up")
    warmup: float = option(0.0, "share of the updates over which the rate rises", least=0)
    beta1: float = option(0.9, "AdamW", least=0)
    beta2: float = option(0.95, "AdamW", least=0)
    decay: float = option(0.0, "AdamW's weight decay; never on biases or LayerNorm scales", least=0)
    mesh_data: int = option(0, "devices that rows alone are cut over (default: what is left)", "mesh.data", least=0)
    mesh_fsdp: int = option(
        0, "devices that rows and weights are cut over (default: as many as fit)", "mesh.fsdp", least=0
    )
    mesh_tensor: int = option(1, "devices that heads, feed-forward and vocabulary are cut over", "mesh.tensor", least=1)
    remat: Literal["none", "dots", "full"] = option(
        "none", "what the backward pass computes again: nothing, all but matrix products, or whole layers"
    )
    clip: float = option(1.0, "greatest global gradient norm (ours: the paper states none)", least=0)
    seed: int = option(0, "of initial weights and of the order of the data", least=0)
    save_every: int = option(
        0, "updates between study checkpoints, which are kept (adapt: a tenth of them; finetune: all)", least=0
    )
    recover_minutes: float = option(10.0, "minutes between recovery checkpoints")
    keep: int = option(2, "recovery checkpoints that are kept, the newest", least=1)
    resume: Literal["auto", "must", "never"] = option("auto", "go on from the run's newest whole checkpoint")
    tracker: Literal["tensorboard", "mlflow"] = option("tensorboard", "where metrics go beside metrics.jsonl")
    allow_change: tuple[str, ...] = option(
        (), "what may differ from the run that is gone on with: a flag, dataset, start, jax, ..."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "auto: bf16 on accelerators, fp32 on the CPU")
    coordinator: str = option("", "HOST:PORT of the first of several processes (default: as the launcher says)")
    num_processes: int = option(0, "processes of this training, with --coordinator", least=0)
    process_id: int = option(-1, "this one's place among them, from 0, with --coordinator", least=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptConfig(TrainConfig):
    """Phase 1: further language modelling on transcripts (paper section 4.2)."""

    data: str = option("data", "datasets as DIR[:WEIGHT],...; a weight is a share of the rows drawn")
    max_steps: int = option(14_500, "most updates when --steps is not given (Table 1)", least=1)
    start: str = option("", "go on from this adapt RUN[@STEP]", "from")
    mask_documents: bool = option(False, "hide the documents of a packed row from each other (the paper does not)")
    task_adaptive: bool = option(
        False, "read the labelled contexts of --data, as a classifier reads them, in place of its packed rows"
    )
    plan: bool = option(False, "run nothing; say what this training needs on --devices of --device", told=False)
    device: DeviceName = option("none", "of --plan: of which kind", told=False)
    devices: int = option(1, "of --plan: how many", least=1, told=False)
    mfu: float = option(0.0, "of --plan: share of the peak (default: as measured, else 0.4)", least=0, told=False)
    price: float = option(
        0.0, "of --plan: dollars for an hour of a device (default: an assumed one)", least=0, told=False
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Phase 2: a template head on the right-most token, all weights tuned (paper section 4.3)."""

    data: Path = option(Path("data"), "dataset")
    start: str = option("", "the adapt RUN[@STEP] to tune", "from")
    length: int = option(512, "tokens of the window", least=1)
    labels: int = option(0, "use the first N labels of one seeded permutation, so subsets nest (default: all)", least=0)
    select: Literal["validation", "test"] = option(
        "validation", "what the checkpoint of least loss is chosen on; test, as the paper's BERT, marks each report"
    )
    role_tags: bool = option(
        False, "keep <CUSTOMER>, <SYSTEM> and <ADVOCATE> in the context (the paper leaves them out)"
    )
    attention: Literal["auto", "causal", "full"] = option(
        "auto", "what positions of a Pythia's window see: those before them, or all, which is not exported"
    )
    pooling: Literal["auto", "last", "mean", "first"] = option(
        "auto", "the positions that a Pythia's head reads: the last (as the paper), or others, which is not exported"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A run on a split: report.json, predictions.jsonl and a page."""

    run: str = option("", "RUN, RUN@STEP, RUN@last or RUN@best")
    data: Path = option(Path("data"), "dataset")
    split: Literal["train", "validation", "test"] = option("test", "side of the dataset")
    out: str = option("", "folder of the report (default: RUN/evaluate-SPLIT)")
    baselines: bool = option(True, "fit and score majority, previous template and linear n-grams beside the run")
    exam: int = option(
        0, "of an adapt run: contexts after which it is asked which template's text is likeliest", least=0
    )
    batch: int = option(64, "rows at a time", least=1)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A bundle -> suggestions over HTTP, the advocate's console, and what became of the suggestions."""

    bundle: str = option("", "folder of the bundle; bin/convert onnx or tensorrt makes one")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 is all of this machine")
    port: int = option(8080, "to listen on; 0 takes a free one, which is printed", least=0)
    backend: Literal["onnx", "cuda", "tensorrt", "triton", "fake"] = option(
        "onnx", "what runs the network: ONNX Runtime (cuda: on a GPU), its engine, a Triton server, or nothing (fake)"
    )
    threads: int = option(0, "of onnx: threads that compute (default: all cores)", least=0)
    triton: str = option("localhost:8000", "of triton: HOST:PORT of its HTTP service")
    triton_model: str = option("templates", "of triton: name of the model, which must be of this bundle")
    fake_ms: float = option(0.0, "of fake: milliseconds that a row takes; its logits are made up", least=0)
    batch: int = option(4, "most requests of one length that are computed at once", least=1)
    queue: int = option(64, "most requests that wait; those beyond are answered 429 at once", least=1)
    timeout_ms: int = option(1000, "longest time to an answer; a request that is older is never computed", least=1)
    max_body: int = option(1_048_576, "bytes of a request above which it is answered 413", least=1)
    store: str = option("sqlite:///events.sqlite", "database of suggestions and events; postgresql+psycopg://...")
    tokens: str = option("", "file of bearer tokens, one a line, of which a request must carry one (default: none)")
    admin_tokens: str = option("", "file of the tokens of /admin/, which is closed without")
    cases: str = option("", "cases that /console replays, a file of JSON Lines (default: made-up ones)")
    drain_seconds: int = option(30, "after SIGTERM, longest wait for the requests in hand", least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeEventsExportConfig:
    """Suggestions and what became of them -> Parquet, a row an event; a suggestion without any has one row."""

    store: str = option("sqlite:///events.sqlite", "database that bin/serve writes; postgresql+psycopg://...")
    since: str = option("", "first day, as 2026-01-31 (default: all)")
    until: str = option("", "the day after the last, likewise")
    out: Path = option(Path("events.parquet"), "file to write")
    overwrite: bool = option(False, "replace --out when it exists")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadtestConfig:
    """Requests at given rates to a running server -> latencies in the form of the paper's Table 4."""

    url: str = option("http://127.0.0.1:8080", "of the server")
    cases: str = option("", "file of cases, as bin/prepare reads them; contexts are drawn from it")
    contexts: int = option(10_000, "contexts drawn from the cases (the paper's number)", least=1)
    rates: tuple[float, ...] = option((1.0, 2.0, 5.0, 10.0, 20.0), "requests a second, one after another")
    minutes: float = option(5.0, "of each rate; the paper's number")
    warmup: float = option(10.0, "seconds before each rate that are not counted", least=0)
    arrivals: Literal["poisson", "constant", "bursty"] = option(
        "poisson", "when requests are sent: Poisson as the paper's figures suggest, evenly, or in bursts (Gamma)"
    )
    burstiness: float = option(4.0, "of bursty: variance of the gaps, a Poisson process having 1", least=0)
    timeout: float = option(10.0, "seconds after which an unanswered request counts as an error", least=0)
    budget_ms: float = option(100.0, "what an answer may take (paper section 5: 100 ms)", least=0)
    seed: int = option(0, "of contexts and arrivals", least=0)
    token: str = option("", "file whose first line is the server's bearer token")
    device: DeviceName = option("none", "that the server computes on, for the least time that it can take")
    flops: float = option(0.0, "in place of --device: operations a second that it does", least=0)
    out: Path = option(Path("loadtest"), "folder of the report")
    overwrite: bool = option(False, "replace --out when it is a load test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole path on the embedded model and synthetic cases, ending with the advocate's console."""

    out: Path = option(Path("demo"), "folder for all that is made")
    serve: bool = option(False, "leave the server of the console running until Ctrl-C")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertHuggingfaceConfig:
    """A run -> a folder that transformers loads."""

    run: str = option("", "RUN, RUN@STEP, RUN@last or RUN@best")
    out: Path = option(Path("converted"), "folder to write")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOnnxConfig:
    """A run -> a bundle: an ONNX graph that was held to the run on real contexts, with all that serving it needs."""

    run: str = option("", "RUN, RUN@STEP, RUN@last or RUN@best")
    data: str = option("", "dataset of the contexts (default: the one that the run was trained on)")
    out: Path = option(Path("bundle"), "folder to write")
    overwrite: bool = option(False, "replace --out when it is a bundle")
    head: Literal["auto", "template", "lm"] = option(
        "auto", "what the run must have: a template or a language-model head"
    )
    dtype: Literal["fp32", "fp16"] = option("fp32", "of weights and activations; the head is float32 in both")
    wide_residual: bool = option(False, "keep the residual stream in float32 where --dtype=fp16")
    form: Literal["auto", "fused", "parted", "plain"] = option(
        "auto", "attention as one operator, in four (faster on CPUs; of auto, fp32), or as products (opset 20)"
    )
    slots: int = option(
        0, "columns of the template head, the spare ones for templates to come (default: as trained)", least=0
    )
    verify_contexts: int = option(1000, "real contexts that the bundle is held to the run on", least=1)
    quantize: Literal["none", "int8", "tensorrt-int8", "tensorrt-fp8"] = option(
        "none", "int8: of fp32, for ONNX Runtime; tensorrt-...: of fp16, for GPUs from 8.6 (int8) or 8.9 (fp8) on"
    )
    gate_contexts: int = option(5000, "of --quantize: labelled test contexts that decide on it", least=1)
    calibrate_contexts: int = option(
        512, "of --quantize=tensorrt-...: training contexts that scales are measured on", least=1
    )
    force: bool = option(False, "of --quantize: write the bundle even if it suggests worse than the run")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertTensorrtConfig:
    """An ONNX bundle -> a bundle with a TensorRT engine for the GPU of this machine; needs no JAX."""

    bundle: str = option("", "folder of the ONNX bundle, of --dtype=fp16")
    cases: str = option("", 'cases to verify the engine on, {"messages": [...]} a line')
    out: Path = option(Path("engine"), "folder to write")
    batch: int = option(8, "most rows at a time; one is what is tuned for", least=1)
    timing_cache: str = option("", "file of what was timed, which makes the next build quicker; made if missing")
    refit: str = option("", "folder of an older engine that takes the bundle's head; nothing is built then")
    verify_contexts: int = option(1000, "contexts that the engine is held to the bundle on", least=1)
    check: bool = option(False, "needs no GPU: only say what tensorrt-rtx makes of the graph")
    compute_capability: str = option("8.6", "of --check: what to build for (8.6 is the A10's)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertTritonConfig:
    """A bundle -> a version of a model in a Triton model repository."""

    bundle: str = option("", "folder of the bundle, with model.plan or model.onnx")
    out: Path = option(Path("models"), "model repository; a model that is there gets the bundle as its next version")
    name: str = option("templates", "of the model; two kinds of bundle in one repository need two names")
    device: Literal["gpu", "cpu"] = option("gpu", "of a new ONNX model; an engine runs on a GPU")
    max_batch: int = option(4, "of a new model: most requests computed at once", least=1)
    timeout_ms: int = option(100, "of a new model: longest wait in the queue", least=1)


def parse(
    kind: type[Config], argv: Sequence[str], layers: Callable[[Mapping[str, Any]], Iterable[Any]] = lambda _: ()
) -> Config:
    """Flags over the user's `--config` file over `layers` over the dataclass's own defaults.

    Args:
        kind: the command's dataclass.
        argv: the command's arguments.
        layers: given what flags and file say, the mappings that lie under them, lowest first.

    Raises:
        UsageError: an unknown flag or key, or a value that is not of its field's type.
    """
    flags = _flags(kind, argv)
    path = flags.pop("config", None)
    given = {**(load(Path(path)) if path else {}), **flags}
    merged = {key: value for layer in layers(given) for key, value in layer.items()}
    return build(kind, {**merged, **given})


def build(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """The dataclass from named values, each brought to its field's type.

    Raises:
        UsageError: a name that is no field (the nearest ones are listed), or a value of another type.
    """
    fields = {_name(field): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UsageError(_unknown(key, fields))
    types_ = typing.get_type_hints(kind)
    given = {key: value for key, value in values.items() if value is not None}  # YAML's null
    coerced = {fields[k].name: _coerce(k, types_[fields[k].name], v) for k, v in given.items()}
    for key in given:
        _check_bound(key, coerced[fields[key].name], fields[key].metadata.get("least"))
    return kind(**coerced)


def _check_bound(key: str, value: Any, least: int | None) -> None:
    if least is not None and not value >= least:  # a NaN is no number above anything
        raise UsageError(f"--{key}={value} is too small; {least} or more is allowed")


def dump(config: Any) -> str:
    """The resolved config as YAML that `--config` reads again."""
    values = {_name(f): getattr(config, f.name) for f in dataclasses.fields(config) if f.metadata.get("told", True)}
    plain = {k: list(v) if isinstance(v, tuple) else str(v) if isinstance(v, Path) else v for k, v in values.items()}
    return yaml.safe_dump(plain, sort_keys=False)


def load(path: Path) -> dict[str, Any]:
    """A YAML file of keys.

    Raises:
        UserError: missing, not YAML, or not a mapping.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a YAML file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}; a mapping of keys to values is needed")
    return value


def mixture(data: str) -> list[tuple[Path, float | None]]:
    """`DIR[:WEIGHT],...` as folders and weights; None where no weight is given.

    Raises:
        UsageError: a weight that is no positive number, or weights on some and not on others.
    """
    parts = [part.rpartition(":") if ":" in part else (part, "", "") for part in data.split(",") if part]
    pairs = [(Path(folder), _weight(weight, data) if colon else None) for folder, colon, weight in parts]
    if not pairs or len({weight is None for _, weight in pairs}) > 1:
        raise UsageError(f"--data={data!r}: name folders as DIR,DIR or all with weights as DIR:WEIGHT,DIR:WEIGHT")
    return pairs


def _weight(text: str, data: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not weight > 0:
        raise UsageError(f"--data={data!r}: weight {text!r} is not a number above 0")
    return weight


def size(name: str) -> dict[str, Any]:
    """`configs/sizes/NAME.yaml`: architecture, weights, tokenizer and this size's settings of each phase.

    Raises:
        UsageError: no such size.
    """
    names = sorted((p.stem for p in (CONFIGS / "sizes").glob("*.yaml")), key=lambda n: (len(n), n))
    if name not in names:
        raise UsageError(f"--size={name!r} is unknown; allowed: {', '.join(names)}")
    return load(CONFIGS / "sizes" / f"{name}.yaml")


def tokenizer_path(name: str) -> Path:
    """The tokenizer.json of a size, Pythia's when `name` is empty."""
    which = size(name)["tokenizer"] if name else "pythia"
    return ASSETS / "nano" / "tokenizer.json" if which == "nano" else ASSETS / "tokenizers" / f"{which}.json"


def training_layers(phase: Literal["adapt", "finetune"], size_name: str, recipe: str) -> list[dict[str, Any]]:
    """The layers under a training's flags, lowest first: the phase's file, the size's section, the paper's table."""
    layers = [load(CONFIGS / f"{phase}.yaml"), size(size_name).get(phase, {})]
    return [*layers, load(CONFIGS / f"{phase}-paper.yaml")] if recipe == "paper" else layers


class _Loader(yaml.SafeLoader):
    """Reads `3e-4` as a number, which YAML 1.1 takes for a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def _flags(kind: type, argv: Sequence[str]) -> dict[str, Any]:
    fields = dataclasses.fields(kind)
    command = re.sub("(?<=[a-z])(?=[A-Z])", " ", kind.__name__.removesuffix("Config")).lower()
    parser = _Parser(
        prog=f"bin/{command}", description=kind.__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="keys as below; flags go over it")
    for field in fields:
        _add(parser, field)
    known, unknown = parser.parse_known_args([_switched(flag, fields) for flag in argv])
    if unknown:
        raise UsageError(_unknown(unknown[0], {_name(f): f for f in fields}))
    return vars(known)


def _switched(flag: str, fields: Iterable[Any]) -> str:
    """A bare switch as `--switch=true`, so that it does not take what comes after it for its value."""
    switches = {f"--{_name(field)}" for field in fields if field.type in (bool, "bool")}
    return f"{flag}=true" if flag in switches else flag


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    if field.metadata.get("positional"):
        parser.add_argument(field.name, help=field.metadata["help"])
        return
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    shown = "" if default in ("", 0, False) else f" [{default}]"
    text = (field.metadata["help"] + shown).replace("%", "%%")
    allowed = ("true", "false") if field.type in (bool, "bool") else typing.get_args(field.type)
    metavar = "|".join(allowed) if allowed and isinstance(allowed[0], str) else "X"
    parser.add_argument(f"--{_name(field)}", help=text, metavar=metavar)


def _name(field: dataclasses.Field[Any]) -> str:
    return field.metadata.get("flag", field.name)


def _unknown(key: str, fields: Mapping[str, Any]) -> str:
    bare = key.lstrip("-").split("=")[0]
    near = difflib.get_close_matches(bare, fields, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join('--' + n for n in near)}" if near else "see --help for those there are"
    return f"{key!r} is unknown; {hint}"


def _coerce(key: str, kind: Any, value: Any) -> Any:
    """Brings a flag's text or a YAML value to a field's type; raises UsageError when it cannot be."""
    origin = typing.get_origin(kind)
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        return tuple(_coerce(key, typing.get_args(kind)[0], part) for part in parts if part != "")
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise UsageError(f"--{key}={value!r} is unknown; allowed: {', '.join(typing.get_args(kind))}")
        return value
    return _scalar(key, kind, value)


def _scalar(key: str, kind: Any, value: Any) -> Any:
    try:
        return _TYPES[kind][0](str(value))
    except (ValueError, KeyError):
        raise UsageError(f"--{key}={value!r} is not {_TYPES[kind][1]}") from None


_TYPES: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
    Path: (Path, "a path"),
}
