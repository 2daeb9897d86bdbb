"""Two bundles, a file of experiments between them, and the flags of a server; pairs and their arms."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bundles
import pyarrow.parquet
import yaml

from jaxtempl.bundle.bundle import read_manifest
from jaxtempl.serve.events.export import export
from jaxtempl.serve.experiments import definition
from jaxtempl.serve.experiments.assignment import Assignment, assign

CANARY = "cnry4711"  # in the id and text of each template
ADMIN = "the-admins-own"
PAIRS = [(f"a{i % 6}", f"c{i}") for i in range(60)]


def write_bundle(folder: Path, marked: str) -> Path:
    """Write a bundle whose templates have the canary in their ids and texts."""

    def mark(text: str) -> str:
        entries = [
            {**each, "id": f"{CANARY}-{each['id']}", "text": f"{each['text']} {CANARY} {marked}"}
            for each in json.loads(text)
        ]
        return json.dumps(entries)

    return bundles.rewrite(bundles.write_serving_bundle(folder, window=64, buckets=[64]), "templates.json", mark)


class Site:
    """Two bundles, a file of experiments between them, and the flags of a server."""

    def __init__(self, folder: Path) -> None:
        self.store, self.file = folder / "events.sqlite", folder / "experiments.yaml"
        self.v3, self.v4 = write_bundle(folder / "v3", "three"), write_bundle(folder / "v4", "four")
        self.content: dict[str, Any] = {
            "holdout": {"salt": "h", "share": 0.3},
            "test": {
                **{"name": "v3-v4", "salt": "t", "start": "2026-01-01T00:00:00Z", "end": "2100-01-01T00:00:00Z"},
                "arms": {
                    "v3": {"bundle": str(self.v3), "range": [0, 0.4]},
                    "v4": {"bundle": str(self.v4), "range": [0.4, 0.8]},
                },
            },
            "shadow": {"bundle": str(self.v4), "share": 1},
        }
        self.write(self.content)
        (folder / "admin").write_text(ADMIN)
        self.flags = (f"--experiments={self.file}", f"--admin_tokens={folder / 'admin'}")

    def write(self, content: dict[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump(content))

    def expected(self, pair: tuple[str, str]) -> Assignment:
        found = assign(definition.read(self.file), *pair, datetime.now(UTC))
        assert found
        return found

    def of_arm(self, arm: str) -> tuple[str, str]:
        return next(pair for pair in PAIRS if self.expected(pair).arm == arm)

    def version(self, arm: str) -> str:
        return str(read_manifest(self.v4 if arm == "v4" else self.v3)["version"])

    def rows(self, folder: Path) -> dict[str, dict[str, Any]]:
        export(f"sqlite:///{self.store}", folder / "events.parquet")
        return {row["suggestion_id"]: row for row in pyarrow.parquet.read_table(folder / "events.parquet").to_pylist()}
