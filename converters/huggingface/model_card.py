"""README.md of a converted run, as the Hugging Face hub shows one: its use, its data, its figures and its limits.

All of it is read from the run's files, and from the manifests of its datasets where those still lie where they did.
Folders are named by their last part alone, and no text of a case or of a template goes in.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import yaml

from converters.huggingface import card_texts
from converters.huggingface.card_texts import CardTexts
from converters.huggingface.special_tokens import SpecialTokens
from jaxtempl import files
from jaxtempl.config import sizes
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UserError
from jaxtempl.models import factory
from jaxtempl.runs.run import Run, read_config
from jaxtempl.text import formats

CARD = """---
{front}---
# {name}

{summary} {family} with {layers} layers, hidden {hidden}, {heads} heads: {parameters:,} parameters, float32.

## Use

```python
{code}```

{batches}

## Data

{data}

## Figures

{figures}

## Limits

{limits}
"""

EXAMPLE_MESSAGES = [
    ("advocate", "Hello, how can I help?"),
    ("customer", "My card has not come"),
    ("advocate", "When was it sent?"),
    ("customer", "Two weeks ago"),
]
METRICS = {
    "top1": ("top-1", "accuracy"),
    "top3": ("top-3", "top-3 accuracy"),
    "top5": ("top-5", "top-5 accuracy"),
    "cross_entropy": ("cross-entropy, nats", "cross-entropy"),
    "loss": ("nats a token", "cross-entropy"),
    "bits_a_byte": ("bits a byte", "bits a byte"),
}  # name in a report: heading of its column, and what the hub is told it is
PHASES = {"adapt": "language modelling (adapt)", "finetune": "template classification (finetune)"}
ROW_TITLES = {
    "run": "this model",
    "ngrams": "n-grams",
    "previous_template": "previous template",
    "majority": "majority",
}


def render_card(source: Run, step: int, special: SpecialTokens) -> str:
    """The README.md of a run's checkpoint."""
    a, texts, reports = source.architecture, _texts(source), _reports(source, step)
    padding = {"token": special.names["pad_token"], "id": special.ids["pad_token"]}
    return CARD.format(
        front=_front(source, step, reports),
        name=_name(source, step),
        summary=_summary(source),
        family=texts.name,
        layers=a.layers,
        hidden=a.hidden,
        heads=a.heads,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(factory.abstract_params(a, source.slots))),
        code=_code(source, step),
        batches=texts.batches.format(**padding, own=texts.own[source.phase].format(**padding)),
        data="\n".join(_data(source, step)),
        figures="\n\n".join([_trained(source, step), *_measured(reports)]),
        limits="\n".join(f"- {line}" for line in _limits(source, step)),
    )


def _texts(source: Run) -> CardTexts:
    return card_texts.TEXTS[source.architecture.family]


def _name(source: Run, step: int) -> str:
    return f"{source.folder.resolve().name}@{step}"


def _summary(source: Run) -> str:
    if source.phase == "finetune":
        return (
            f"Reads a support conversation up to now and scores the {len(source.templates):,} reply templates that "
            "`config.json` names by how likely an advocate sends each next."
        )
    return (
        "A language model of support transcripts: cases of one message a line, `<CUSTOMER>: text`, `<SYSTEM>: text` or "
        "`<ADVOCATE>: text`."
    )


def _code(source: Run, step: int) -> str:
    if source.phase == "adapt":
        return _texts(source).language_model
    tags = formats.TAGS if source.manifest["role_tags"] else {}
    texts = ", ".join(f'"{tags.get(role, "")}{said}"' for role, said in EXAMPLE_MESSAGES)
    retired = [template.slot for template in source.templates if not template.active]
    return card_texts.CLASSIFIER.format(
        texts=f"[{texts}]",
        length=source.manifest["length"] - source.tokenizer.overhead,
        plain=_texts(source).plain,
        enclosed=_texts(source).enclosed,
        retired=card_texts.EXCLUDE_RETIRED.format(slots=retired) if retired else "",
        temperature=round(source.temperature(step), 4),
        count=min(5, len(source.templates) - len(retired)),
    )


def _front(source: Run, step: int, reports: list[dict[str, Any]]) -> str:
    """The metadata, in the hub's own keys."""
    task = _texts(source).task if source.phase == "adapt" else "text-classification"
    tags = [source.architecture.family, "jaxtempl"]
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": task, "tags": tags}
    base = _base_model(_lineage(source, step)[0][0])
    if base:
        front["base_model"] = base
    if reports:
        results = [_result(report, task) for report in reports]
        front["model-index"] = [{"name": _name(source, step), "results": results}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000)


def _result(report: Mapping[str, Any], task: str) -> dict[str, Any]:
    """A report as the hub has it."""
    measured = [(METRICS[name], entry["value"]) for name, entry in report["metrics"].items() if name in METRICS]
    about = report["dataset"]
    return {
        "task": {"type": task},
        "dataset": {
            "name": Path(about["folder"]).name,
            "type": "transcripts",
            "split": report["split"],
            "revision": about["fingerprint"],
        },
        "metrics": [{"type": kind, "name": name, "value": v} for (name, kind), v in measured if v is not None],
    }


def _lineage(source: Run, step: int) -> list[tuple[Run, int]]:
    """The trainings that led to a checkpoint and the last step of each, oldest first, as far as their runs are left."""
    begun = source.manifest["start"]
    if "run" in begun and _is_left(begun):
        return [*_lineage(Run(Path(begun["run"])), begun["step"]), (source, step)]
    return [(source, step)]


def _is_left(begun: Mapping[str, Any]) -> bool:
    """Whether the checkpoint that a run began with is still there, and no other in its place."""
    path = Path(begun["run"]) / "checkpoints" / str(begun["step"]) / "manifest.json"
    return path.is_file() and begun["weights_sha256"] == {path.name: files.sha256(path)}


def _base_model(first: Run) -> str | None:
    """The weights on the hub that a run began with, if they are those published for its size."""
    size, begun = first.manifest["size"], first.manifest["start"]
    if size not in sizes.size_names():
        return None
    published = sizes.read_size(size)["weights"]
    return published if begun.get("weights") == published and not published.startswith("assets/") else None


def _data(source: Run, step: int) -> Iterator[str]:
    """What each training read, and what the first began with."""
    stages = _lineage(source, step)
    yield f"It began with {_origin(stages[0][0])} and was trained on:\n"
    for trained, last in stages:
        for folder, fingerprint in trained.manifest["datasets"].items():
            named = f"`{Path(folder).name}` (fingerprint `{fingerprint[:12]}`)"
            yield f"- {PHASES[trained.phase]}, {last:,} steps on {named}: {_counts(Path(folder), fingerprint, trained)}"
    yield "\nNo text of its cases and templates is in this folder."


def _origin(first: Run) -> str:
    begun, published = first.manifest["start"], _base_model(first)
    if "run" in begun:
        return f"step {begun['step']} of a run `{Path(begun['run']).name}` that is no longer where it was"
    if begun["weights"] == "random":
        return "random weights"
    revision = f" at revision {begun['revision']}" if begun["revision"] else ""
    return f"the weights `{published or Path(begun['weights']).name}`{revision}"


def _counts(folder: Path, fingerprint: str, trained: Run) -> str:
    """What a training had of a dataset."""
    try:
        dataset = Dataset(folder)
    except UserError:
        return "its counts are not known, for it is no longer where it was"
    if dataset.fingerprint != fingerprint:
        return "its counts are not known, for another dataset is where it was"
    counts = dataset.manifest["counts"]
    cases = f"{counts['cases']['train']:,} training cases"
    if trained.phase == "adapt":
        return f"{cases}, {counts['rows']['train']:,} rows of {trained.manifest['length']:,} tokens"
    labels = trained.manifest["labels"] or counts["labels"]["train"]
    return f"{cases}, {labels:,} labels, {len(trained.templates):,} templates"


def _trained(source: Run, step: int) -> str:
    """How far it was trained, and the losses of that."""
    settings, lines = read_config(source.folder), list(source.metrics())
    batch, length = settings["batch_size"], source.manifest["length"]
    read = f"{batch:,} labelled contexts"
    if source.phase == "adapt":
        read = f"{batch:,} rows of {length:,} tokens ({step * batch * length:,} tokens in all)"
    last = {name: value for line in lines if line["step"] == step for name, value in line.items()}
    names = {"loss": "training", "validation_loss": "validation"}
    told = [f"{title} loss at the last {last[name]:.3f} nats" for name, title in names.items() if name in last]
    return f"The last training took {step:,} steps of {read}" + "".join(f"; {loss}" for loss in told) + "."


def _reports(source: Run, step: int) -> list[dict[str, Any]]:
    """What bin/evaluate left in the run for this checkpoint."""
    found = [files.read_json(path) for path in sorted(source.folder.glob("evaluate-*/report.json"))]
    return [report for report in found if report.get("kind") == "evaluation" and report["step"] == step]


def _measured(reports: list[dict[str, Any]]) -> list[str]:
    if not reports:
        return ["It was not measured on a test split: no report of `bin/evaluate` for this checkpoint is in its run."]
    return ["\n".join(_table(report)) for report in reports]


def _table(report: Mapping[str, Any]) -> Iterator[str]:
    """A report's metrics beside those of the baselines."""
    names = [name for name in METRICS if name in report["metrics"]]
    counts, about = report["counts"], report["dataset"]
    some = f"{counts['contexts']:,} contexts of " if "contexts" in counts else ""
    apart = "" if about["trained_on"] else ", a dataset that it was not trained on"
    yield f"On {some}{counts['cases']:,} {report['split']} cases of `{Path(about['folder']).name}`{apart}:\n"
    yield f"| | {' | '.join(METRICS[name][0] for name in names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for row, title in ROW_TITLES.items():
        found = report if row == "run" else report.get("baselines", {}).get(row)
        if found:
            yield f"| {title} | {' | '.join(_interval(found['metrics'][name]) for name in names)} |"
    others = " The other rows are baselines, fitted on the same labels." if report.get("baselines") else ""
    yield f"\n95 % intervals in brackets, of a bootstrap over whole cases.{others}"
    if counts.get("no_class"):
        yield f"The template of some contexts ({counts['no_class']:,}) is no class: wrong, without a cross-entropy."


def _interval(value: Mapping[str, float | None]) -> str:
    shown = ["-" if number is None else f"{number:.3f}" for number in (value["value"], value["low"], value["high"])]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _limits(source: Run, step: int) -> list[str]:
    own = _classifier_limits(source, step) if source.phase == "finetune" else _model_limits(source)
    return [
        *own,
        "What it was trained on is what it knows. Other companies, languages and times were not tested, nor whether it "
        "treats groups of customers alike, nor text that was written to mislead it.",
        "Its weights may have kept parts of the text they were trained on: give them to nobody who may not read that.",
    ]


def _classifier_limits(source: Run, step: int) -> Iterator[str]:
    length, value = source.manifest["length"], source.temperature(step)
    yield f"It reads the newest whole messages that fit in {length:,} tokens, and nothing of what came before them."
    if source.manifest["role_tags"]:
        yield "It reads who said what as a tag before each message, as above; it was not trained on texts without."
    else:
        yield "It reads no roles: who said what it is not told."
    yield "It knows no other templates than these; a new one needs another training."
    retired = [template.slot for template in source.templates if not template.active]
    if retired:
        yield f"Retired templates still have a class ({len(retired):,}); the code above leaves their slots out."
    if value == 1:
        yield "No temperature was fitted for this checkpoint: it may be too sure of what it says, or not sure enough."
    else:
        yield f"Its logits, divided by {value:.4f} (fitted on validation contexts), give probabilities by a softmax."
    yield "It suggests replies to a person who chooses; it was not tested to answer customers by itself."


def _model_limits(source: Run) -> Iterator[str]:
    yield f"It was trained on rows of {source.manifest['length']:,} tokens; longer texts were not tested."
    yield _texts(source).limit
