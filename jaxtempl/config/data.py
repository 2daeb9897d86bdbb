"""The settings of `bin/prepare`."""

import dataclasses
from pathlib import Path

from jaxtempl.config.fields import option


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
