"""The configuration of `bin/templates`."""

import dataclasses
from pathlib import Path

from jaxtempl.config.fields import argument, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemplatesDiffConfig:
    """Compare two lists of templates: which are added, retired, changed in text, and probably renamed."""

    old: Path = argument("The former list: a JSON file of templates, or a dataset, run or bundle that has one.")
    new: Path = argument("The new list, in the same forms.")
    out: str = option("", "JSON file to write (default: print only).")
