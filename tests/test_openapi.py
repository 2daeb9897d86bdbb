"""What clients are promised: the schemas of /v1 by a golden file, and the page that tells the routes to people.

A change of the golden file is a change of what clients rely on: make it on purpose, with a note in CHANGELOG.
"""

import html.parser
import json
from typing import Any

from jsonschema import Draft202012Validator
from masked import GOLDEN

from jaxtempl.serve.http import openapi, reference

DOCUMENT = openapi.document(guarded=True)


def promised() -> dict[str, Any]:
    """The routes of /v1, and all that they refer to."""
    paths = {path: told for path, told in DOCUMENT["paths"].items() if path.startswith("/v1/")}
    schemas, text = DOCUMENT["components"]["schemas"], json.dumps(paths)
    found: dict[str, Any] = {}
    while new := [name for name in schemas if name not in found and f'/{name}"' in text]:
        found |= {name: schemas[name] for name in new}
        text += json.dumps(found)
    return {"paths": paths, "schemas": found}


def test_v1_is_as_promised() -> None:
    assert json.dumps(promised(), indent=1) + "\n" == (GOLDEN / "openapi.v1.json").read_text()


def test_every_schema_is_one() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


class Reader(html.parser.HTMLParser):
    """What the page says and where it points."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.links, self.ids, self.tags = "", set[str](), set[str](), set[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links |= {value or "" for name, value in attrs if name in ("href", "src")}
        self.ids |= {value or "" for name, value in attrs if name == "id"}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_tells_all_and_needs_nothing_from_elsewhere() -> None:
    page = Reader()
    page.feed(reference.page(DOCUMENT))
    assert all(path in page.text for path in DOCUMENT["paths"])
    assert set(DOCUMENT["components"]["schemas"]) == page.ids
    assert {link.removeprefix("#") for link in page.links} - page.ids == {"/openapi.json"}
    assert not page.tags & {"script", "link", "img"}
