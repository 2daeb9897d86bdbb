"""A tokenizer is known by what it does: the same one, written another way, owns the same rows."""

import json
from pathlib import Path

import pytest

from jaxtempl.config.paths import ASSETS
from jaxtempl.config.sizes import tokenizer_path
from jaxtempl.text.tokenizer import Tokenizer

PYTHIA = ASSETS / "tokenizers" / "pythia.json"


def rewritten(folder: Path, **model: object) -> Tokenizer:
    """Pythia's tokenizer.json in raw UTF-8, without line breaks, merges as pairs, and with a truncation."""
    value = json.loads(PYTHIA.read_text())
    merges = [m.split(" ") if isinstance(m, str) else m for m in value["model"]["merges"]]
    value["model"] |= {"merges": merges, **model}
    value["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return Tokenizer(folder / "tokenizer.json")


def test_the_same_tokenizer_in_another_form_is_the_same(tmp_path: Path) -> None:
    ours, other = Tokenizer(PYTHIA), rewritten(tmp_path)
    assert ours.json != other.json
    assert ours.sha256 == other.sha256
    assert ours.encode(["It's a é test, twice: a test"]) == other.encode(["It's a é test, twice: a test"])


def test_another_tokenizer_is_another(tmp_path: Path) -> None:
    merges = json.loads(PYTHIA.read_text())["model"]["merges"]
    assert rewritten(tmp_path, merges=merges[:-1]).sha256 != Tokenizer(PYTHIA).sha256
    assert Tokenizer(tokenizer_path("nano")).sha256 != Tokenizer(PYTHIA).sha256


@pytest.mark.parametrize("size", ["410m", "1.4b", "2.8b"])
def test_published_sizes_take_pythias(size: str) -> None:
    assert tokenizer_path(size) == PYTHIA
