"""The configuration of `bin/prepare`."""

import dataclasses
from pathlib import Path

from jaxtempl.config.fields import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Prepare transcripts: write a dataset of cases, labels and packed language-model rows."""

    transcripts: tuple[str, ...] = option((), "Files, folders or URLs of cases, split by a hash of case_id.")
    train: tuple[str, ...] = option((), "Training cases, if the split is given.")
    validation: tuple[str, ...] = option((), "Validation cases (default: 2 % of --train).")
    test: tuple[str, ...] = option((), "Test cases, if the split is given.")
    documents: tuple[str, ...] = option((), 'Other text ({"id", "text"} a line), for packed rows only.')
    templates: str = option(
        "", 'JSON file of [{"id", "text", "active"}]; other templates are collected from the transcripts.'
    )
    slots_from: str = option(
        "", "Run or bundle whose templates keep their slots; new templates get the slots after them (default: none)."
    )
    label: str = option("template", "Key of a message that names its template.")
    size: str = option("", "Size whose tokenizer packs the rows (default: Pythia's tokenizer).")
    tokenizer: str = option(
        "", "Tokenizer that packs the rows: a tokenizer.json, a vocab.txt, or a folder of weights that has one."
    )
    fractions: tuple[float, ...] = option((0.49, 0.01, 0.5), "Train, validation and test shares of --transcripts.")
    min_count: int = option(1, "Minimum training examples of a template that becomes a class.", minimum=1)
    redact: str = option("", "Redaction policy: `default`, or a YAML file; without one, nothing is redacted.")
    number_placeholders: bool = option(False, "Number the placeholders of a case: <NAME_1>, <NAME_2>.")
    measure_redaction: bool = option(
        False, "Plant values into the transcripts and measure the policy's recall and precision; no dataset is written."
    )
    planted_values: int = option(
        200, "Values that --measure_redaction plants of each type, country and kind of sentence.", minimum=1
    )
    max_bad: float = option(0.01, "Maximum share of bad records; above it nothing is written.", minimum=0)
    allow_partial: tuple[str, ...] = option(
        (), "Files whose unreadable part may be lost; otherwise a damaged file is an error."
    )
    length: int = option(2048, "Tokens of a packed row.", minimum=2)
    seed: int = option(0, "Seed of the order of documents in the packed rows.", minimum=0)
    overwrite: bool = option(False, "Replace --out if it is a dataset.")
    out: Path = option(Path("data"), "Folder of the dataset.")
    verbose: bool = option(False, "Print the resolved config.", recorded=False)
