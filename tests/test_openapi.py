"""Test that the schemas of /v1 match a golden file.

Clients rely on the golden file: change it only on purpose, with a note in CHANGELOG.
"""

import json
from typing import Any

from jsonschema import Draft202012Validator
from masked import GOLDEN

from jaxtempl.serve.http import openapi

DOCUMENT = openapi.document(guarded=True)


def promised() -> dict[str, Any]:
    """Return the routes of /v1, and all schemas that they refer to."""
    paths = {path: methods for path, methods in DOCUMENT["paths"].items() if path.startswith("/v1/")}
    schemas, text = DOCUMENT["components"]["schemas"], json.dumps(paths)
    referred: dict[str, Any] = {}
    while new := [name for name in schemas if name not in referred and f'/{name}"' in text]:
        referred |= {name: schemas[name] for name in new}
        text += json.dumps(referred)
    return {"paths": paths, "schemas": referred}


def test_v1_matches_the_golden_file() -> None:
    assert json.dumps(promised(), indent=1) + "\n" == (GOLDEN / "openapi.v1.json").read_text()


def test_every_schema_is_valid() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
