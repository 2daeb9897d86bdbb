"""`bin/scaling report`: the results of studies -> what their laws say, pictures, and a page."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtempl import files
from jaxtempl.config import parsing
from jaxtempl.config.scaling import ScalingReportConfig
from jaxtempl.scaling import page, results
from jaxtempl.scaling.equivalents import Equivalents
from jaxtempl.scaling.laws import analysis
from jaxtempl.scaling.laws.analysis import Findings


def main(argv: Sequence[str]) -> None:
    """`bin/scaling report`."""
    asked = parsing.parse(ScalingReportConfig, argv)
    rows, runs = results.read_all(asked.runs), [Path(folder) for folder in asked.runs]
    found = analysis.of(rows)
    equivalents = Equivalents(rows, found.laws)
    for answer in equivalents.query(asked.match) if asked.match else ():
        tokens = "no number of tokens" if answer.tokens is None else f"{answer.tokens:,.0f} tokens"
        print(f"{answer.size}: {tokens} ({answer.how})")
    out = Path(asked.out or runs[0] / "report")
    files.write_json(out / "report.json", {"kind": "scaling report", "runs": list(asked.runs), **told(found)})
    page.write(page.Study(rows, found, equivalents, runs), out)
    print(f"{out / 'index.html'}: {len(rows):,} cells, {sum(not law.refused for law in found.laws):,} laws hold")


def told(found: Findings) -> dict[str, Any]:
    """The findings as JSON."""
    laws = [{f.name: getattr(law, f.name) for f in dataclasses.fields(law) if f.name != "fit"} for law in found.laws]
    rest = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name != "laws"}
    return files.plain({"laws": laws, **rest})
