"""A byte order mark, which editors on Windows write, is skipped wherever text is read."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

import jaxtempl
from jaxtempl import files
from jaxtempl.errors import UserError
from jaxtempl.loadtest.pipeline import _token
from jaxtempl.prepare.labels import read_given_templates
from jaxtempl.serve import schema
from jaxtempl.serve.http.auth import Tokens
from jaxtempl.text.case_files import read_case, read_cases
from jaxtempl.text.pretrained import read_tokenizer
from jaxtempl.text.tokenizer import Tokenizer

MARK = b"\xef\xbb\xbf"
PYTHIA = Path(jaxtempl.__file__).parent / "assets" / "tokenizers" / "pythia.json"
MESSAGES = [{"role": "customer", "text": "Hi"}]
CASE = json.dumps({"case_id": "c", "messages": MESSAGES}).encode()


def marked(tmp_path: Path, name: str, content: bytes) -> Path:
    (tmp_path / name).write_bytes(MARK + content)
    return tmp_path / name


def test_json_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.read_json(marked(tmp_path, "config.json", b'{"a": 1}')) == {"a": 1}
    (entry,) = read_given_templates(marked(tmp_path, "t.json", b'[{"id": "a", "text": "b", "active": true}]'))
    assert entry.id == "a"
    path = marked(tmp_path, "c.jsonl", CASE)
    assert read_case(path) == next(read_cases(str(path)))
    monkeypatch.setattr("sys.stdin", io.StringIO((MARK + CASE).decode()))
    assert read_case(Path("-")) == read_case(path)


def test_tokenizers(tmp_path: Path) -> None:
    tokenizer = Tokenizer(marked(tmp_path, "tokenizer.json", PYTHIA.read_bytes()))
    assert tokenizer.json == PYTHIA.read_text("utf-8")
    words = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hi"])
    assert read_tokenizer(marked(tmp_path, "vocab.txt", words.encode())).vocabulary == 6


def test_token_files(tmp_path: Path) -> None:
    path = marked(tmp_path, "tokens", b"sesame\n")
    assert Tokens(path).admits(b"Bearer sesame")
    assert _token(str(path)) == "sesame"


def test_http_bodies() -> None:
    request: Any = schema.decode(schema.SuggestRequest, MARK + CASE)
    assert request == schema.decode(schema.SuggestRequest, CASE)


def test_a_file_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(b'["caf\xe9"]')
    with pytest.raises(UserError, match=r"t\.json is not UTF-8 text: .* at byte 5; save it as UTF-8"):
        files.read_json(tmp_path / "t.json")
