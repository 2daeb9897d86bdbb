"""`prepare`: make a dataset folder of transcripts and documents."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

import jaxtempl
from jaxtempl import files
from jaxtempl.config.data import PrepareConfig
from jaxtempl.config.sizes import tokenizer_path
from jaxtempl.data.packing import Packer
from jaxtempl.errors import UserError
from jaxtempl.prepare import split as prepare_split
from jaxtempl.prepare import tfds_builders
from jaxtempl.prepare.corpus import CorpusReader, InputFiles
from jaxtempl.prepare.labels import LabelCollector, read_given_templates
from jaxtempl.prepare.pack import pack
from jaxtempl.prepare.redaction import Redaction
from jaxtempl.prepare.split import SPLITS, Digests, OtherDigests, prove
from jaxtempl.prepare.spool import SpoolFolder
from jaxtempl.text.cases import Redact, Template
from jaxtempl.text.ingest import CaseReader, Quarantine
from jaxtempl.text.pretrained import read_tokenizer
from jaxtempl.text.sources import find_files
from jaxtempl.text.templates import read_templates
from jaxtempl.text.tokenizer import Tokenizer

INPUTS = ("transcripts", "train", "validation", "test", "documents")
HELD_OUT_TOKENS = 1e9  # maximum size of the validation rows; DESIGN's decision 6
PACKAGES = ("tensorflow-datasets", "array-record", "tokenizers", "numpy")


def run(config: PrepareConfig) -> None:
    """Make the dataset `config.out`, whole or not at all, and print its counts.

    Raises:
        UserError: a flag, a file, or too large a share of the records is bad; bad records are listed next to `out`.
    """
    _check(config)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # without it the library uses one core in a forked process
    tokenizer = _tokenizer(config)
    redaction = Redaction.of(config)
    given = read_given_templates(Path(config.templates)) if config.templates else []
    ancestor = read_templates(_ancestor(config)) if config.slots_from else []
    inputs = {name: [source for path in getattr(config, name) for source in find_files(path)] for name in INPUTS}
    with files.atomic_folder(config.out, replace=config.overwrite) as folder:
        quarantine = Quarantine(folder / "quarantine.jsonl")
        with SpoolFolder(folder) as spool:
            corpus = CorpusReader(spool, LabelCollector(spool, given, ancestor))
            reader = _read(config, inputs, corpus, tokenizer, quarantine, redaction.redact, folder)
            copied = corpus.is_copied()
            corpus.labels.leave_out(copied[: corpus.counts["cases"]["train"]])
            templates = _write_labels(config, corpus, folder)
            rows, proofs = _write_rows(config, corpus, copied, tokenizer, folder)
            counts = _counts(corpus, reader, templates) | rows
        manifest = _manifest(config, inputs, tokenizer, redaction, counts, proofs, folder)
        files.write_json(folder / "manifest.json", manifest)
    print(_table(config.out, manifest))


def _check(config: PrepareConfig) -> None:
    given = [name for name in ("train", "validation", "test") if getattr(config, name)]
    if config.transcripts and given:
        raise UserError(f"transcripts and {given[0]} are both given; name transcripts, or train, validation and test")
    if not config.transcripts and not config.train and (given or not config.documents):
        raise UserError(
            "nothing to train on; give --transcripts=PATH, or --train=PATH --test=PATH, or --documents=PATH"
        )
    fractions = config.fractions
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(
            f"fractions is {fractions}; three shares (train, validation, test) that add up to 1 are allowed"
        )
    if not 2 <= config.length <= 65535:
        raise UserError(f"length is {config.length}; 2 to 65535 tokens a row are allowed")
    if config.label in ("role", "text"):
        raise UserError(f"label is {config.label!r}, which has another meaning; name the key that holds template ids")
    if config.size and config.tokenizer:
        raise UserError("size and tokenizer are both given; give one, the rows belong to one tokenizer")
    files.check_target(config.out, config.overwrite, "manifest.json", "dataset")


def _tokenizer(config: PrepareConfig) -> Tokenizer:
    tokenizer = read_tokenizer(Path(config.tokenizer) if config.tokenizer else tokenizer_path(config.size))
    if tokenizer.vocabulary > 1 << 16:
        raise UserError(f"the tokenizer has {tokenizer.vocabulary} ids; rows are 16-bit, at most 65536 are allowed")
    return tokenizer


def _ancestor(config: PrepareConfig) -> Path:
    """Return the templates.json of `--slots_from`."""
    path = Path(config.slots_from) / "templates.json"
    if not path.is_file():
        raise UserError(f"--slots_from={config.slots_from} has no templates.json; name a finetune run or a bundle")
    return path


def _partial(config: PrepareConfig, inputs: InputFiles) -> set[str]:
    """Return the names of the files of `--allow_partial`; each must be one of the inputs."""
    names = {source.name for listed in inputs.values() for source in listed}
    partial = {path: [source.name for source in find_files(path)] for path in config.allow_partial}
    for path, found in partial.items():
        if len(found) > 1 or found[0] not in names:
            raise UserError(f"--allow_partial={path} is not one of the files to read; name each file, not its folder")
    return {name for found in partial.values() for name in found}


def _bar(total: int, what: str, unit: str) -> "tqdm[Any]":
    return tqdm(total=total, desc=what, unit=unit, unit_scale=True, file=sys.stderr, disable=not sys.stderr.isatty())


def _read(
    config: PrepareConfig,
    inputs: InputFiles,
    corpus: CorpusReader,
    tokenizer: Tokenizer,
    quarantine: Quarantine,
    redact: Redact | None,
    folder: Path,
) -> CaseReader:
    """Run the first pass; raise UserError where too many records are bad."""
    with _bar(sum(source.size for of_flag in inputs.values() for source in of_flag), "reading", "B") as bar:
        texts = corpus.labels.given_texts()
        reader = CaseReader(quarantine, config.label, bar.update, _partial(config, inputs), texts, redact)
        tfds_builders.build(
            lambda: tfds_builders.CaseBuilder(folder, corpus.read(inputs, reader, tokenizer, config.fractions)),
            corpus.folder,
        )
    quarantined = config.out.with_name(f"{config.out.name}.quarantine.jsonl")
    try:
        quarantine.check(config.max_bad, quarantined)
    except UserError:
        shutil.copyfile(quarantine.path, quarantined)
        raise
    if not corpus.counts["cases"]["train"] and not corpus.counts["documents"]["train"]:
        raise UserError("no case or document is on the training side; give more of them or other fractions")
    return reader


def _write_labels(config: PrepareConfig, corpus: CorpusReader, folder: Path) -> list[Template]:
    templates = corpus.labels.templates(config.min_count)
    tfds_builders.build(lambda: tfds_builders.LabelBuilder(folder, corpus.labels.examples(templates)), corpus.folder)
    files.write_json(folder / "templates.json", [dataclasses.asdict(template) for template in templates])
    return templates


def _write_rows(
    config: PrepareConfig, corpus: CorpusReader, copied: Bool[np.ndarray, " train"], tokenizer: Tokenizer, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the second pass: write the rows of both splits, and return their counts and the proofs of no leak."""
    digests = {split: column.read() for split, column in corpus.digests.items()}
    distinct = np.flatnonzero(~copied)
    orders = {
        "train": distinct[prepare_split.order(len(distinct), config.seed)],
        "validation": prepare_split.order(len(digests["validation"]), config.seed),
    }
    packers = {split: Packer(config.length) for split in orders}
    rows = Counter[str]()

    def examples() -> tfds_builders.SplitExamples:
        for split, order in orders.items():
            limit = HELD_OUT_TOKENS if split == "validation" else np.inf
            with _bar(len(order), f"packing {split}", "text") as bar:
                for row in pack(corpus.documents[split], order, packers[split], limit):
                    rows[split] += 1
                    bar.update(packers[split].documents - bar.n)
                    yield split, row

    tfds_builders.build(
        lambda: tfds_builders.RowBuilder(folder, examples(), tokenizer.sha256, config.length), corpus.folder
    )
    packed = {split: order[: packers[split].documents] for split, order in orders.items()}
    counts = {
        "rows": dict(rows),
        "tokens": {split: packer.tokens for split, packer in packers.items()},
        "text_bytes": {split: int(corpus.sizes[split].read()[order].sum()) for split, order in packed.items()},
        "duplicates_of_held_out": len(digests["train"]) - len(distinct),
    }
    return counts, _proofs(corpus, digests["train"][packed["train"]], corpus.held_out())


def _proofs(corpus: CorpusReader, packed: Digests, held_out: OtherDigests) -> dict[str, Any]:
    ids = {split: column.read() for split, column in corpus.ids.items()}
    held_out_ids = np.concatenate([ids["validation"], ids["test"]])
    proofs = {
        "texts": prove("texts", packed, held_out),
        "cases": prove("cases", ids["train"], held_out_ids),
    }
    return {name: dataclasses.asdict(proof) for name, proof in proofs.items()}


def _counts(corpus: CorpusReader, reader: CaseReader, templates: list[Template]) -> dict[str, Any]:
    by_split = {name: {split: counter[split] for split in SPLITS} for name, counter in corpus.counts.items()}
    return (
        by_split
        | corpus.labels.counts(templates)
        | {
            "records": {"good": reader.quarantine.good, "quarantined": dict(reader.quarantine.reasons)},
            "dropped_messages": reader.dropped_messages,
            "skipped_labels": corpus.labels.skipped,
            "labels_with_template_text": reader.filled_labels,
            "labels_without_text": reader.labels_without_text,
            "templates": len(templates),
            "templates_without_text": sum(not template.text for template in templates),
            "templates_without_examples": corpus.labels.count_without_examples(),
            "templates_under_min_count": corpus.labels.count_rare(templates),
        }
    )


def _manifest(
    config: PrepareConfig,
    inputs: InputFiles,
    tokenizer: Tokenizer,
    redaction: Redaction,
    counts: dict[str, Any],
    proofs: dict[str, Any],
    folder: Path,
) -> dict[str, Any]:
    sums = files.sums(folder)
    content = {
        name: sum_ for name, sum_ in sums.items() if name != "quarantine.jsonl"
    }  # the quarantine names the inputs
    listed = {name: [source.facts() for source in of_flag] for name, of_flag in inputs.items() if of_flag}
    return {
        "format": files.FORMAT,
        "kind": "dataset",
        "fingerprint": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        "versions": {"jaxtempl": jaxtempl.__version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
        "sources": listed,
        "fractions": list(config.fractions) if config.transcripts else None,
        "seed": config.seed,
        "label": config.label,
        "min_count": config.min_count,
        "slots_from": files.sha256(_ancestor(config)) if config.slots_from else None,
        "tokenizer": tokenizer.sha256,
        "length": config.length,
        "redaction": redaction.facts(),
        "counts": counts,
        "proofs": proofs,
        "files": sums,
    }


def _table(out: Path, manifest: dict[str, Any]) -> str:
    """Return the counts as aligned lines, with one column for each split."""
    counts = manifest["counts"]
    lines = [f"{'':20}" + "".join(f"{split:>14}" for split in SPLITS)]
    for name, value in counts.items():
        if isinstance(value, dict) and name != "records" and any(value.values()):
            lines.append(f"{name:20}" + "".join(f"{value.get(split, 0):14,}" for split in SPLITS))
    quarantined = counts["records"]["quarantined"]
    kinds = ", ".join(f"{count} {reason}" for reason, count in quarantined.items())
    lines.append(
        f"records: {counts['records']['good']:,} good, {sum(quarantined.values()):,} bad"
        + (f" ({kinds})" if kinds else "")
    )
    names = [name for name, value in counts.items() if isinstance(value, int)]
    lines.append(", ".join(f"{name} {counts[name]:,}" for name in names))
    if redaction := manifest["redaction"]:
        values = ", ".join(f"{count:,} {name}" for name, count in redaction["counts"].items())
        lines.append(f"redacted: {values or 'nothing was found'} (policy {redaction['digest'][:12]})")
    partial = [source for listed in manifest["sources"].values() for source in listed if "partial" in source]
    lines += [f"partial: {source['name']} ({source['partial']})" for source in partial]
    return "\n".join([*lines, f"dataset {out} {manifest['fingerprint'][:12]}"])
