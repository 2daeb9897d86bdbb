"""Tests of the console's routes: sample cases, security headers, and the contrast of its colours."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from jaxtempl.config.paths import PACKAGE
from jaxtempl.errors import UserError
from jaxtempl.serve import schema
from jaxtempl.serve.console.page import replay_cases, routes
from jaxtempl.text.cases import Case, Message

FOLDER = PACKAGE / "serve" / "console"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".js", ".css", ".html"))
CASE = {
    "case_id": "a",
    "messages": [{"role": "customer", "text": "Hi 😩", "at": "now"}, {"role": "system", "text": "x"}],
}


def written(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def shown(cases: Sequence[Case], **texts: str) -> list[Any]:
    """Return the cases as the page reads them, from a server that knows the texts of some templates."""
    return TestClient(Starlette(routes=routes(cases, lambda: texts))).get("/console/cases").json()


def test_the_sample_cases_are_valid_requests() -> None:
    made = shown(replay_cases(""))
    assert len(made) == 12
    for case in made:
        assert schema.decode(schema.SuggestRequest, json.dumps(case).encode()).messages
        assert case["messages"][0]["role"] == "customer"


def test_cases_of_a_file_keep_only_the_fields_that_the_page_shows(tmp_path: Path) -> None:
    path = written(tmp_path / "cases.jsonl", CASE)
    messages = [{"role": "customer", "text": "Hi 😩"}, {"role": "system", "text": "x"}]
    assert shown(replay_cases(path)) == [{"case_id": "a", "messages": messages}]


def test_a_label_without_text_shows_its_templates_text_where_that_is_known(tmp_path: Path) -> None:
    labels = [{"role": "advocate", "template": name} for name in ("known", "unknown")]
    path = written(tmp_path / "cases.jsonl", {"messages": [{"role": "customer", "text": "Hi"}, *labels]})
    [case] = shown(replay_cases(path), known="Hello!")
    assert case["messages"] == [{"role": "customer", "text": "Hi"}, {"role": "advocate", "text": "Hello!"}]


def test_only_the_first_fifty_cases_of_a_file_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "cases.jsonl", *[CASE] * 50, "no case")
    assert len(replay_cases(path)) == 50


def test_an_invalid_record_is_reported_without_its_text(tmp_path: Path) -> None:
    path = written(tmp_path / "cases.jsonl", CASE, {"case_id": "b", "messages": [{"text": "canary"}]})
    with pytest.raises(
        UserError, match=r"cases.jsonl line 2 is not a case: missing field: messages\[0\] has no 'role'"
    ) as error:
        replay_cases(path)
    assert "canary" not in str(error.value)


def test_a_file_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no case"):
        replay_cases(written(tmp_path / "cases.jsonl"))


def test_every_file_that_the_page_names_is_served() -> None:
    client = TestClient(Starlette(routes=routes([], dict)))
    page = client.get("/console")
    named = re.findall(r'(?:src|href)="(console/[^"]+)"', page.text)
    scripts = "".join(path.read_text() for path in FILES if path.suffix == ".js")
    named += [f"console/{name}" for name in re.findall(r'from "\./([^"]+)"', scripts)]
    types = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
    assert {f"console/{path.name}" for path in FILES} - {"console/index.html"} == set(named)
    for name in named:
        assert client.get(f"/{name}").headers["content-type"] == types[Path(name).suffix]


def test_the_headers_restrict_scripts_and_prevent_storage_of_cases() -> None:
    client = TestClient(Starlette(routes=routes([Case("a", (Message("customer", "Hi"),))], dict)))
    for path in ("/console", "/console/console.js", "/console/cases"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
        assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/console/cases").json() == [{"case_id": "a", "messages": [{"role": "customer", "text": "Hi"}]}]
    assert client.get("/console/cases").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_texts_never_become_markup_and_no_script_or_style_is_inline(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", text)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=)", text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import", text)


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.2."""
    digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_the_contrast_meets_wcag_aa(scheme: int) -> None:
    themes = re.findall(r":root \{(.*?)\}", (FOLDER / "console.css").read_text(), re.DOTALL)
    colours: dict[str, str] = dict(re.findall(r"--([\w-]+): #(\w+);", themes[scheme]))
    texts = [("ink", "paper"), ("ink", "strong"), ("quiet", "paper"), ("quiet", "strong"), ("on-accent", "accent")]
    edges = [("edge", "paper"), ("accent", "paper"), ("accent", "strong")]
    assert all(contrast(colours[a], colours[b]) >= 4.5 for a, b in texts)
    assert all(contrast(colours[a], colours[b]) >= 3 for a, b in edges)
