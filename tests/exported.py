"""Bundles for tests: real exports of tiny runs, verified on a tiny dataset."""

from pathlib import Path
from typing import Any

from tiny import dataset, make_run, template

from converters.onnx import export
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.config.converting import ConvertOnnxConfig
from jaxtempl.runs.run import Run

TEMPLATES = [
    template(0, "greet", text="Hello,\nhow can I help?"),
    template(1, "old", active=False),
    template(2, "card"),
    template(3, "refund"),
    template(4, "bye"),
    template(5, "wait"),
    template(6, "thanks"),
]


def run_with_dataset(folder: Path, templates: Any = TEMPLATES) -> tuple[Run, Path]:
    """Return a run of random weights that names its dataset, and the folder of the dataset."""
    data = dataset(folder / "made")
    datasets = {str(data.folder): data.fingerprint}
    return make_run(folder / "run", templates, (3,), 2, datasets=datasets), data.folder


def export_bundle(source: Run, out: Path, **flags: Any) -> Bundle:
    """Convert the run with the real converter, and open the bundle."""
    export.main(ConvertOnnxConfig(**{"run": str(source.folder), "out": out, "verify_contexts": 20, **flags}))
    return Bundle.open(out)
