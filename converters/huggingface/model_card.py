"""The model card of a converted run, for the Hugging Face hub: use, data, figures and limits.

Its sources are the run's files, and the manifests of its datasets if they still exist. Folders are named by their last
part only, and no text of a case or a template is included.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import yaml

from converters.huggingface import card_texts, lineage
from converters.huggingface.card_texts import CardTexts
from converters.huggingface.special_tokens import SpecialTokens
from jaxtempl import files
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UserError
from jaxtempl.models import factory
from jaxtempl.runs.run import Run, read_config
from jaxtempl.specs.interval import Interval
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
}  # name in a report: heading of its column, and the hub's metric type
PHASES = {"adapt": "language modelling (adapt)", "finetune": "template classification (finetune)"}
ROW_TITLES = {
    "run": "this model",
    "ngrams": "n-grams",
    "previous_template": "previous template",
    "majority": "majority",
}


class Publication(NamedTuple):
    """Facts of a publication that the run does not know.

    Attributes:
        license: The hub's name of the licence.
        languages: ISO 639 codes.
    """

    license: str
    languages: Sequence[str]


UNPUBLISHED = Publication("unknown", ("en",))


def render_card(source: Run, step: int, special: SpecialTokens, publication: Publication) -> str:
    """Render the README.md of a run's checkpoint."""
    a, texts, reports = source.architecture, _texts(source), _reports(source, step)
    padding = {"token": special.names["pad_token"], "id": special.ids["pad_token"]}
    return CARD.format(
        front=_front(source, step, reports, publication),
        name=_name(source, step),
        summary=_summary(source),
        family=texts.name,
        layers=a.layers,
        hidden=a.hidden,
        heads=a.heads,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(factory.abstract_params(a, source.slots))),
        code=_code(source),
        batches=texts.batches.format(**padding, phase=texts.phases[source.phase].format(**padding)),
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
        active = sum(template.active for template in source.templates)
        return (
            f"Reads a support conversation and scores each of the {active:,} reply templates in "
            "`config.json` by the probability that an advocate sends it next."
        )
    return (
        "A language model of support transcripts: cases with one message per line, `<CUSTOMER>: text`, "
        "`<SYSTEM>: text` or `<ADVOCATE>: text`."
    )


def _code(source: Run) -> str:
    if source.phase == "adapt":
        return _texts(source).language_model
    tags = formats.TAGS if source.manifest["role_tags"] else {}
    texts = ", ".join(f'"{tags.get(role, "")}{text}"' for role, text in EXAMPLE_MESSAGES)
    return card_texts.CLASSIFIER.format(
        texts=f"[{texts}]",
        length=source.manifest["length"] - source.tokenizer.overhead,
        plain=_texts(source).plain,
        enclosed=_texts(source).enclosed,
        count=min(5, sum(template.active for template in source.templates)),
    )


def _front(source: Run, step: int, reports: list[dict[str, Any]], publication: Publication) -> str:
    """Return the metadata in the hub's keys."""
    front: dict[str, Any] = {"license": publication.license, "language": list(publication.languages)}
    task = _texts(source).task if source.phase == "adapt" else "text-classification"
    tags = [source.architecture.family, "jaxtempl"]
    front |= {"library_name": "transformers", "pipeline_tag": task, "tags": tags}
    base = lineage.base_model(lineage.stages(source, step)[0][0])
    if base:
        front["base_model"] = base
    if reports:
        results = [_result(report, task) for report in reports]
        front["model-index"] = [{"name": _name(source, step), "results": results}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000)


def _result(report: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return a report in the hub's format."""
    metrics = [(METRICS[name], entry["value"]) for name, entry in report["metrics"].items() if name in METRICS]
    dataset = report["dataset"]
    return {
        "task": {"type": task},
        "dataset": {
            "name": Path(dataset["folder"]).name,
            "type": "transcripts",
            "split": report["split"],
            "revision": dataset["fingerprint"],
        },
        "metrics": [{"type": kind, "name": name, "value": v} for (name, kind), v in metrics if v is not None],
    }


def _data(source: Run, step: int) -> Iterator[str]:
    """Yield the initialization of the first run and the data of each."""
    stages = lineage.stages(source, step)
    yield f"It was initialized with {_origin(stages[0][0])} and trained on:\n"
    for trained, last in stages:
        for folder, fingerprint in trained.manifest["datasets"].items():
            dataset = f"`{Path(folder).name}` (fingerprint `{fingerprint[:12]}`)"
            counts = _counts(Path(folder), fingerprint, trained)
            yield f"- {PHASES[trained.phase]}, {last:,} steps on {dataset}: {counts}"
    yield "\nThis folder contains no text of its cases and templates."


def _origin(first: Run) -> str:
    init, published = first.manifest["start"], lineage.base_model(first)
    if "run" in init:
        return f"step {init['step']} of the run `{Path(init['run']).name}`, which no longer exists"
    if init["weights"] == "random":
        return "random weights"
    revision = f" at revision {init['revision']}" if init["revision"] else ""
    return f"the weights `{published or Path(init['weights']).name}`{revision}"


def _counts(folder: Path, fingerprint: str, trained: Run) -> str:
    """Return the counts of a dataset that a training used."""
    try:
        dataset = Dataset(folder)
    except UserError:
        return "its counts are unknown, because it no longer exists"
    if dataset.fingerprint != fingerprint:
        return "its counts are unknown, because another dataset has replaced it"
    counts = dataset.manifest["counts"]
    cases = f"{counts['cases']['train']:,} training cases"
    if trained.phase == "adapt":
        return f"{cases}, {counts['rows']['train']:,} rows of {trained.manifest['length']:,} tokens"
    labels = trained.manifest["labels"] or counts["labels"]["train"]
    return f"{cases}, {labels:,} labels, {len(trained.templates):,} templates"


def _trained(source: Run, step: int) -> str:
    """Return the length of the last training and its losses."""
    config, lines = read_config(source.folder), list(source.metrics())
    batch, length = config["batch_size"], source.manifest["length"]
    batches = f"{batch:,} labelled contexts"
    if source.phase == "adapt":
        batches = f"{batch:,} rows of {length:,} tokens ({step * batch * length:,} tokens in all)"
    last = {name: value for line in lines if line["step"] == step for name, value in line.items()}
    names = {"loss": "training", "validation_loss": "validation"}
    losses = [f"{title} loss at the last step {last[name]:.3f} nats" for name, title in names.items() if name in last]
    return f"The last training took {step:,} steps of {batches}" + "".join(f"; {loss}" for loss in losses) + "."


def _reports(source: Run, step: int) -> list[dict[str, Any]]:
    """Return the reports of bin/evaluate on this checkpoint."""
    reports = [files.read_json(path) for path in sorted(source.folder.glob("evaluate-*/report.json"))]
    return [report for report in reports if report.get("kind") == "evaluation" and report["step"] == step]


def _measured(reports: list[dict[str, Any]]) -> list[str]:
    if not reports:
        return ["It was not evaluated on a test split: its run has no report of `bin/evaluate` for this checkpoint."]
    return ["\n".join(_table(report)) for report in reports]


def _table(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table of a report's metrics and the baselines'."""
    names = [name for name in METRICS if name in report["metrics"]]
    counts, dataset = report["counts"], report["dataset"]
    contexts = f"{counts['contexts']:,} contexts of " if "contexts" in counts else ""
    unseen = "" if dataset["trained_on"] else ", a dataset that it was not trained on"
    yield f"On {contexts}{counts['cases']:,} {report['split']} cases of `{Path(dataset['folder']).name}`{unseen}:\n"
    yield f"| | {' | '.join(METRICS[name][0] for name in names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for row, title in ROW_TITLES.items():
        entry = report if row == "run" else report.get("baselines", {}).get(row)
        if entry:
            cells = [f"{Interval.from_json(entry['metrics'][name]):.3f}" for name in names]
            yield f"| {title} | {' | '.join(cells)} |"
    others = " The other rows are baselines, fitted to the same labels." if report.get("baselines") else ""
    yield f"\n95 % confidence intervals in brackets, by a bootstrap over whole cases.{others}"
    if counts.get("no_class"):
        yield f"The template of {counts['no_class']:,} contexts is no class: they are wrong, without a cross-entropy."


def _limits(source: Run, step: int) -> list[str]:
    limits = _classifier_limits(source, step) if source.phase == "finetune" else _model_limits(source)
    return [
        *limits,
        "It knows its training data only. Other companies, languages and periods were not tested, nor equal treatment "
        "of groups of customers, nor adversarial text.",
        "Its weights may memorize training text: share them only with people who may read that text.",
    ]


def _classifier_limits(source: Run, step: int) -> Iterator[str]:
    length, value = source.manifest["length"], source.temperature(step)
    yield f"It reads the newest whole messages that fit in {length:,} tokens, and no earlier ones."
    if source.manifest["role_tags"]:
        yield "It reads each message's role as a tag before its text, as above; it was not trained without tags."
    else:
        yield "It reads no roles: messages carry no mark of their author."
    yield "It suggests these templates only; a new template needs another training."
    retired = sum(not template.active for template in source.templates)
    if retired:
        yield f"Retired templates have no class ({retired:,}); `slots` in `manifest.json` lists the slot of each class."
    if value == 1:
        yield "No temperature was fitted for this checkpoint: its probabilities may be too high or too low."
    else:
        yield (
            f"The head is divided by {value:.4f}, a temperature fitted on validation contexts: a softmax of the logits "
            "gives calibrated probabilities, in the order of the run's."
        )
    yield "It suggests replies to a person who chooses; it was not tested for answering customers without one."


def _model_limits(source: Run) -> Iterator[str]:
    yield f"It was trained on rows of {source.manifest['length']:,} tokens; longer texts were not tested."
    yield _texts(source).limit
