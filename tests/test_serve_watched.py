"""The queries of Prometheus, Grafana and the autoscaler use only metrics that a server exports."""

import json
import re
from collections.abc import Mapping

import pytest
from counted_server import exported
from counted_server import server as server
from deploy_files import DEPLOY, documents
from serving import Server

from jaxtempl.serve.batcher import RefusedError
from jaxtempl.serve.http.app import App

DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
SCRAPED = {"instance"}  # a label that Prometheus adds


def queries() -> list[str]:
    [rules] = documents(DEPLOY / "prometheus" / "alerts.yaml")
    [scaled] = documents(DEPLOY / "kubernetes" / "serve" / "autoscaler.yaml")
    drawn = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return drawn + alerts + [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]


def check(query: str, known: Mapping[str, Mapping[str, set[str]]]) -> None:
    used = re.findall(r"(jaxtempl_\w+)(?:\{([^}]*)\})?", query)
    assert used
    for name, inside in used:
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', inside):
            if label not in SCRAPED:
                pattern = value.split("|") if value.replace("|", "").isidentifier() else [value]
                assert all(any(re.fullmatch(one, it) for it in known[name][label]) for one in pattern), (name, value)
    kept = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
    assert kept <= SCRAPED.union(*(known[name] for name, _ in used))


def test_every_queried_metric_is_exported(server: Server) -> None:
    known = exported(server)
    known["jaxtempl_refused_total"]["reason"] |= {kind.reason for kind in RefusedError.__subclasses__()}
    known["jaxtempl_answers_total"]["status"] |= {"500"}
    known["jaxtempl_answers_total"]["route"] |= {name for name in vars(App) if name == "infer"}
    assert len(queries()) > 20
    for query in queries():
        check(query, known)


WRONG = (
    "jaxtempl_answers",
    'jaxtempl_stage_seconds_sum{stage="runs"}',
    'jaxtempl_refused_total{reason=~"superseded|fool"}',
    'jaxtempl_answers_total{code="200"}',
    "sum by (code) (jaxtempl_answers_total)",
)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_query_is_detected(server: Server, wrong: str) -> None:
    with pytest.raises((KeyError, AssertionError)):
        check(wrong, exported(server))


def test_the_dashboard_shows_every_exported_metric(server: Server) -> None:
    text = json.dumps(DASHBOARD)
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in exported(server)}
    assert not {name for name in names if name not in text}


def test_the_dashboard_is_valid_for_grafana() -> None:
    panels, variables = DASHBOARD["panels"], {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert {source["datasource"]["uid"] for source in (panel, *panel["targets"])} == {"${datasource}"}
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= {*variables, "__rate_interval"}
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert shown <= set(re.findall(r"\w+", target["expr"]))
    places = [panel["gridPos"] for panel in panels]
    cells = [(p["x"] + i, p["y"] + j) for p in places for i in range(p["w"]) for j in range(p["h"])]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24
