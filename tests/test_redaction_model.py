"""The optional spaCy model of a redaction policy, by its folder alone."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import require

from jaxtempl.errors import UserError
from jaxtempl.text.cases import Message
from jaxtempl.text.redaction.policy import read_policy
from jaxtempl.text.redaction.redact import Redactor


def written_policy(folder: Path, model: str) -> str:
    path = folder / "policy.yaml"
    path.write_text(f"model: {model}\n")
    return str(path)


def test_a_model_is_a_folder_and_never_a_package(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"en_core_web_sm', which is no folder of a spaCy model .*; name its folder"):
        read_policy(written_policy(tmp_path, "en_core_web_sm"))


def test_a_missing_spacy_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "meta.json").write_text("{}")
    policy = read_policy(written_policy(tmp_path, str(tmp_path / "model")))
    with pytest.raises(UserError, match="spaCy is not installed; install it"):
        Redactor(policy)


def test_a_model_made_here_finds_names_that_no_list_has(tmp_path: Path) -> None:
    if importlib.util.find_spec("spacy") is None:
        require.missing("spacy")
    import spacy

    pipeline: Any = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "qwertz uiop"}, {"label": "ORG", "pattern": "asdf"}])
    pipeline.to_disk(tmp_path / "model")
    policy = read_policy(written_policy(tmp_path, str(tmp_path / "model")))
    texts = ["so qwertz uiop of asdf wrote", "Uiop again"]
    redacted = Redactor(policy).messages([Message("customer", text) for text in texts], {})
    assert [message.text for message in redacted] == ["so <NAME> of asdf wrote", "<NAME> again"]
    (tmp_path / "model" / "meta.json").write_text("{}")
    with pytest.raises(UserError, match=r"is another model .* restore the model"):
        Redactor(policy)
