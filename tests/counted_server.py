"""A server whose metrics have counted something of each kind, as a fixture."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from bundles import write_serving_bundle
from prometheus_client.parser import text_string_to_metric_families
from serving import Server, served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server that has counted something of each kind."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "experiments.yaml").write_text("holdout: {salt: h, share: 0.5}")
    flags = ("--fake_ms=100", "--max_batch_size=1", f"--experiments={folder / 'experiments.yaml'}")
    with served(write_serving_bundle(folder / "bundle"), folder / "events.sqlite", *flags) as running:
        assert running.suggest(advocate_id="a").status == 200
        shown = {
            "suggestion_id": running.suggest().json["suggestion_id"],
            "event": "shown",
            "at": "2026-01-31T12:00:00Z",
        }
        assert running.ask("/v1/events", shown).status == 200
        statuses: list[int] = []
        while 409 not in statuses:
            with ThreadPoolExecutor(3) as pool:
                statuses = [answer.status for answer in pool.map(lambda _: running.suggest("same"), range(3))]
        yield running


def exported(server: Server) -> dict[str, dict[str, set[str]]]:
    """Return the label values of /metrics, by metric and label."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(server.ask("/metrics").body.decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return {name: labels for name, labels in found.items() if not name.endswith("_created")}
