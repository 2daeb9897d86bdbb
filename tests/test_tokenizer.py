"""A tokenizer's digest depends on its behaviour, not on how its file is written."""

import json
from pathlib import Path

import pytest

from jaxtempl.config.paths import ASSETS
from jaxtempl.config.sizes import tokenizer_path
from jaxtempl.text.tokenizer import Tokenizer

PYTHIA = ASSETS / "tokenizers" / "pythia.json"


def rewritten(folder: Path, **model: object) -> Tokenizer:
    """Return Pythia's tokenizer from raw UTF-8 without line breaks, with merges as pairs and a truncation."""
    value = json.loads(PYTHIA.read_text())
    merges = [m.split(" ") if isinstance(m, str) else m for m in value["model"]["merges"]]
    value["model"] |= {"merges": merges, **model}
    value["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return Tokenizer(folder / "tokenizer.json")


def test_a_tokenizer_written_in_another_form_has_the_same_digest(tmp_path: Path) -> None:
    ours, other = Tokenizer(PYTHIA), rewritten(tmp_path)
    assert ours.json != other.json
    assert ours.sha256 == other.sha256
    assert ours.encode(["It's a é test, twice: a test"]) == other.encode(["It's a é test, twice: a test"])


def test_a_different_tokenizer_has_a_different_digest(tmp_path: Path) -> None:
    merges = json.loads(PYTHIA.read_text())["model"]["merges"]
    assert rewritten(tmp_path, merges=merges[:-1]).sha256 != Tokenizer(PYTHIA).sha256
    assert Tokenizer(tokenizer_path("nano")).sha256 != Tokenizer(PYTHIA).sha256


@pytest.mark.parametrize("size", ["410m", "1.4b", "2.8b"])
def test_published_sizes_use_the_tokenizer_of_pythia(size: str) -> None:
    assert tokenizer_path(size) == PYTHIA
