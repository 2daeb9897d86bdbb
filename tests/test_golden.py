"""Golden files of the formats that a run and a bundle write, with values masked by their kind.

A change here is a change of a format that users read: update the file deliberately, with a note in CHANGELOG.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from exported import export_bundle
from masked import GOLDEN, masked

from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.config.training import AdaptConfig, FinetuneConfig
from jaxtempl.evaluation import evaluate
from jaxtempl.runs.run import Run
from jaxtempl.training import adapt, finetune


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Train and evaluate an adapt run, and a finetune run that starts from it."""
    folder = tmp_path_factory.mktemp("golden")
    data = tiny.dataset(folder / "made").folder
    shared: dict[str, Any] = {"size": "nano", "batch_size": 4, "learning_rate": 1e-3, "steps": 2, "save_every": 2}
    adapted = adapt.adapt(AdaptConfig(**shared, data=str(data), out=f"{folder}/a"))
    tuned = finetune.finetune(FinetuneConfig(**shared, data=data, length=32, start=f"{folder}/a", out=f"{folder}/f"))
    for made in (adapted, tuned):
        evaluate.evaluate(EvaluateConfig(run=str(made.folder), data=str(data), batch_size=4))
    return {"adapt": adapted, "finetune": tuned}


def form(runs: dict[str, Run], name: str) -> str:
    """Return a masked file of the runs; in a file of JSON lines, each distinct masked line occurs once."""
    phase, _, file = name.partition(".")
    text = (runs[phase].folder / FILES[file]).read_text()
    if file == "config.yaml":
        return "\n".join(line.partition(":")[0] for line in text.splitlines())
    if file.endswith(".jsonl"):
        return "\n".join(dict.fromkeys(json.dumps(masked(json.loads(line))) for line in text.splitlines()))
    return json.dumps(masked(json.loads(text)), indent=1)


FILES = {
    "config.yaml": "config.yaml",
    "manifest.json": "manifest.json",
    "architecture.json": "architecture.json",
    "templates.json": "templates.json",
    "metrics.jsonl": "metrics.jsonl",
    "checkpoint.json": "checkpoints/2/manifest.json",
    "meta.json": "checkpoints/2/meta/metadata",
    "report.json": "evaluate-test/report.json",
}
SAME = {"adapt.architecture.json", "adapt.templates.json", "adapt.meta.json"}  # equal to finetune's, or empty


@pytest.mark.parametrize(
    "name", [f"{phase}.{file}" for phase in ("adapt", "finetune") for file in FILES if f"{phase}.{file}" not in SAME]
)
def test_the_formats_of_a_run_match_the_golden_files(runs: dict[str, Run], name: str) -> None:
    assert form(runs, name) == (GOLDEN / name).read_text().rstrip()


def test_the_format_of_a_bundle_matches_the_golden_file(runs: dict[str, Run], tmp_path: Path) -> None:
    made = export_bundle(runs["finetune"], tmp_path / "bundle")
    found = json.dumps(masked(json.loads((made.folder / "bundle.json").read_text())), indent=1)
    assert found == (GOLDEN / "bundle.json").read_text().rstrip()
