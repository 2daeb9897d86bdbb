"""Bundles for tests: of tiny runs and the real export, verified on a tiny dataset."""

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


def run_on_data(folder: Path, templates: Any = TEMPLATES) -> tuple[Run, Path]:
    """A run of random weights that knows its dataset, and that dataset's folder."""
    data = dataset(folder / "made")
    datasets = {str(data.folder): data.fingerprint}
    return make_run(folder / "run", templates, (3,), 2, datasets=datasets), data.folder


def bundle(made: Run, out: Path, **flags: Any) -> Bundle:
    """The run's bundle, by the real converter."""
    export.main(ConvertOnnxConfig(**{"run": str(made.folder), "out": out, "verify_contexts": 20, **flags}))
    return Bundle.open(out)
