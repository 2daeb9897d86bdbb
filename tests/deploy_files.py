"""The manifests of deploy/, parsed."""

from pathlib import Path
from typing import Any

import yaml

from jaxtempl.config.paths import ROOT

DEPLOY = ROOT / "deploy"


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


SERVE = DEPLOY / "kubernetes" / "serve"
[DEPLOYMENT] = documents(SERVE / "deployment.yaml")
POD = DEPLOYMENT["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
