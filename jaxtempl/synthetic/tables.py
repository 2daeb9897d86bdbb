"""The tables of `phrases.yaml`, which explains their notation."""

from pathlib import Path
from typing import Any

import yaml

Step = (
    str | dict[str, list[Any]]
)  # a fork is {"one_of": scripts}; the type is open, as the checker follows no recursion
Script = list[Step]

_TABLES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("phrases.yaml").read_text(encoding="utf-8"))

TEMPLATES: dict[str, str] = _TABLES["templates"]
INACTIVE = frozenset[str](_TABLES["inactive"])
PREDECESSORS: dict[str, str] = _TABLES["predecessors"]
SYNONYMS: dict[str, list[str]] = _TABLES["synonyms"]
QUESTIONS: dict[str, str] = _TABLES["questions"]
SWITCHES: dict[str, str] = _TABLES["switches"]
DIGRESSIONS: list[Script] = _TABLES["digressions"]
WRAP_UP: list[Script] = _TABLES["wrap_up"]
FLOWS: dict[str, Script] = _TABLES["flows"]
MACROS: dict[str, str] = _TABLES["macros"]
PHRASES: dict[str, list[str]] = _TABLES["phrases"]
ADVOCATES: list[str] = _TABLES["advocates"]
FACTS: dict[str, list[str]] = _TABLES["facts"]
