"""Experiments in a running server: arms, holdout, shadow, and changes of the file."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bundles
import psutil
import pytest
import yaml
from experiment_site import ADMIN, CANARY, PAIRS, Site
from serving import MESSAGES, Answer, Server, command, served, until

from jaxtempl.config.paths import ROOT
from jaxtempl.config.serving import ServeConfig
from jaxtempl.errors import UserError
from jaxtempl.serve.experiments import definition
from jaxtempl.serve.experiments.assignment import Assignment
from jaxtempl.serve.server import serve

INFER = "/v2/models/templates/infer"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("arms"))


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[Server]:
    """Start a server; after the tests, check that its log has no template."""
    with served(site.v3, site.store, *site.flags) as running:
        yield running
        assert running.stop() == 0
        running.process.wait()
        log = "".join([*running.log, *running.printed])
        assert '"route":"suggest"' in log
        assert "stopped" in log
        assert not [word for word in (CANARY, '"holdout"') if word in log]


def ask(server: Server, pair: tuple[str, str], **fields: Any) -> Answer:
    got = server.suggest(pair[1], advocate_id=pair[0], **fields)
    assert got.status == 200, got
    return got


def stored(site: Site, folder: Path, *ids: str) -> list[dict[str, Any]]:
    """Return the rows of suggestions once they are stored."""
    until(lambda: set(ids) <= site.rows(folder).keys())
    found = site.rows(folder)
    return [found[x] for x in ids]


def test_a_pair_has_its_arm_on_every_server_and_after_a_restart(server: Server, site: Site, tmp_path: Path) -> None:
    arms = {pair: site.expected(pair) for pair in PAIRS}
    assert {each.arm for each in arms.values()} == {"holdout", "treatment", "v3", "v4"}
    with served(site.v3, site.store, *site.flags) as other:
        with ThreadPoolExecutor(8) as pool:  # requests of all arms wait together
            asked = [(pair, pool.submit(ask, running, pair)) for running in (server, other) for pair in PAIRS]
        answers = [(pair, answer.result().json) for pair, answer in asked]
        assert other.stop() == 0
    for pair, answer in answers:
        assert answer["model_version"] == site.version(arms[pair].arm)
        assert bool(answer["suggestions"]) == (arms[pair].arm != "holdout")
    rows = stored(site, tmp_path, *(answer["suggestion_id"] for _, answer in answers[: len(PAIRS)]))
    sha = definition.read(site.file).sha256
    for pair, row in zip(PAIRS, rows, strict=True):
        assert Assignment(row["experiment"], row["arm"], row["bucket"]) == arms[pair]
        assert (row["config_sha256"], row["advocate_id"], row["case_id"]) == (sha, *pair)
    exposed = {arm: server.metric(f'jaxtempl_exposures_total{{arm="{arm}"}}') for arm in ("holdout", "v3", "v4")}
    assert exposed == {arm: sum(each.arm == arm for each in arms.values()) for arm in exposed}


def test_without_an_advocate_the_production_model_answers_and_is_counted(
    server: Server, site: Site, tmp_path: Path
) -> None:
    before = server.metric("jaxtempl_unassigned_total")
    answer = server.suggest(site.of_arm("holdout")[1]).json
    assert len(answer["suggestions"]) == 5
    assert answer["model_version"] == site.version("v3")
    assert server.metric("jaxtempl_unassigned_total") == before + 1
    [row] = stored(site, tmp_path, answer["suggestion_id"])
    assert [row[name] for name in ("experiment", "arm", "bucket", "config_sha256")] == [None] * 4


def test_the_holdout_computes_as_for_everyone_and_stores_what_it_withholds(
    server: Server, site: Site, tmp_path: Path
) -> None:
    held, shown = site.of_arm("holdout"), ask(server, site.of_arm("treatment")).json
    work = [f'jaxtempl_stage_seconds_count{{stage="{name}"}}' for name in ("read", "wait", "run", "rank", "total")]
    before = [server.metric(line) for line in (*work, "jaxtempl_batch_rows_sum")]
    answer = ask(server, held).json
    assert [server.metric(line) for line in (*work, "jaxtempl_batch_rows_sum")] == [count + 1 for count in before]
    assert (answer["suggestions"], answer["no_suggestion"]) == ([], "holdout")
    assert answer.keys() - {"no_suggestion"} == shown.keys()
    [row] = stored(site, tmp_path, answer["suggestion_id"])
    assert (row["templates"], row["probabilities"], row["reason"]) == ([], [], "holdout")
    assert row["withheld_templates"] == [each["template"] for each in shown["suggestions"]]
    assert row["withheld_probabilities"] == [each["probability"] for each in shown["suggestions"]]
    outcomes = [f'jaxtempl_suggestions_total{{outcome="{name}"}}' for name in ("holdout", "some", "none")]
    counted = [server.metric(line) for line in outcomes]
    nothing = ask(server, held, threshold=1, allowed=[]).json
    assert ask(server, held).json["suggestions"] == []
    assert [server.metric(line) for line in outcomes] == [counted[0] + 2, *counted[1:]], "the outcome shows it"
    assert (nothing["suggestions"], nothing["no_suggestion"]) == ([], "holdout"), "the reason shows what was withheld"


def infer(server: Server, *pairs: tuple[str, str], binary: bool = False) -> Answer:
    cases = [json.dumps({"advocate_id": who, "case_id": case, "messages": MESSAGES}) for who, case in pairs]
    tensor = {"name": "case", "datatype": "BYTES", "shape": [len(cases)], "data": cases}
    return server.ask(INFER, {"inputs": [tensor], "parameters": {"binary_data_output": binary}})


def test_kserve_withholds_and_assigns_too_and_stores_exposures(server: Server, site: Site, tmp_path: Path) -> None:
    pairs = [site.of_arm(name) for name in ("v3", "holdout", "v4")]
    stored(site, tmp_path, ask(server, pairs[0]).json["suggestion_id"])  # with all before it
    before = site.rows(tmp_path)
    got = infer(server, *pairs).json
    assert set(got["model_version"].split(",")) == {site.version("v3"), site.version("v4")}
    names, shares = (output["data"] for output in got["outputs"])
    assert all(CANARY in name for name in names[:5] + names[10:])
    assert names[5:10] == [""] * 5
    assert shares[5:10] == [0.0] * 5
    until(lambda: len(site.rows(tmp_path)) == len(before) + 3)
    new = [row for key, row in site.rows(tmp_path).items() if key not in before]
    assert {(row["advocate_id"], row["case_id"], row["arm"]) for row in new} == {
        (*pair, site.expected(pair).arm) for pair in pairs
    }
    assert {len(row["withheld_templates"]) for row in new if row["arm"] == "holdout"} == {5}
    server.ask(INFER, {"inputs": [{"name": "case", "datatype": "BYTES", "shape": [1], "data": [
        json.dumps({"messages": MESSAGES})]}]})  # fmt: skip
    assert ask(server, pairs[0])
    until(lambda: len(site.rows(tmp_path)) >= len(before) + 4)
    assert len(site.rows(tmp_path)) == len(before) + 4, "KServe's requests without an arm are not stored"


def test_nothing_shows_what_the_holdout_withholds(server: Server, site: Site) -> None:
    """Of all answers, headers and metrics for held-out pairs, none has a template or depends on it."""
    pairs = [pair for pair in PAIRS if site.expected(pair).arm == "holdout"]
    seen = [ask(server, pair, k=k) for pair in pairs for k in (1, 7)]
    event = {"suggestion_id": seen[0].json["suggestion_id"], "event": "opened", "at": "2026-02-01T12:00:00Z"}
    seen += [server.ask("/v1/events", event), server.ask("/v1/events", {**event, "event": "none"})]
    seen += [infer(server, *pairs), infer(server, *pairs, binary=True)]
    seen += [server.ask("/v1/suggest", {"case_id": pairs[0][1], "advocate_id": pairs[0][0], "messages": []})]
    seen += [server.ask(path) for path in ("/metrics", "/readyz", "/v1/model", "/openapi.json")]
    held = [answer.json for answer in seen[: 2 * len(pairs)]]
    for answer in held:
        for name in ("suggestion_id", "latency_ms"):
            del answer[name]
    assert held == [held[0]] * len(held)
    assert [answer.status for answer in seen[2 * len(pairs) :]] == [200, 422, 200, 200, 422, 200, 200, 200, 200]
    assert not [answer for answer in seen if CANARY in f"{answer.headers}{answer.body.decode('latin-1')}"]


def test_a_shadow_is_stored_and_never_shown(server: Server, site: Site, tmp_path: Path) -> None:
    def shadowed() -> list[dict[str, Any]]:
        return [row for row in site.rows(tmp_path).values() if row["shadow_model_version"]]

    answer = ask(server, site.of_arm("v3")).json
    assert "four" not in json.dumps(answer)
    until(lambda: bool(shadowed()))
    for row in shadowed():
        assert row["shadow_model_version"] == site.version("v4")
        assert row["shadow_templates"] == row["templates"] + row["withheld_templates"], "both fake networks agree"
        assert row["shadow_probabilities"] == row["probabilities"] + row["withheld_probabilities"]
        assert row["shadow_latency_ms"] > 0


def test_a_shadow_that_cannot_follow_drops_requests_and_ends_with_its_server(site: Site, tmp_path: Path) -> None:
    """The stopped process of the shadow answers nothing; 16 requests wait, one is computed, the others are dropped."""
    with served(site.v3, tmp_path / "store", *site.flags) as server:
        shadow = shadow_process(server)
        shadow.suspend()
        for i in range(40):
            assert server.suggest(f"s{i}").status == 200
        dropped = 'jaxtempl_shadow_total{outcome="dropped"}'
        assert server.metric(dropped) >= 40 - 17 - 1
        assert server.metric('jaxtempl_shadow_total{outcome="computed"}') == 0
        before = server.metric(dropped)
        shadow.resume()
        until(lambda: server.metric('jaxtempl_shadow_total{outcome="computed"}') == 40 - before)
        shadow.kill()
        until(lambda: server.suggest("after").status == 200 and server.metric(failed()) == 1)
        assert server.suggest("later").status == 200
        until(lambda: any("the shadow ended" in line for line in server.log))
        assert reload(server).status == 200
        shadow = shadow_process(server)
        server.stop(signal.SIGKILL)
    until(lambda: not shadow.is_running() or shadow.status() == psutil.STATUS_ZOMBIE)


def failed() -> str:
    return 'jaxtempl_shadow_total{outcome="failed"}'


def shadow_process(server: Server) -> psutil.Process:
    children = psutil.Process(server.process.pid).children()
    return next(child for child in children if "spawn_main" in " ".join(child.cmdline()))


def reload(server: Server, **body: Any) -> Answer:
    return server.ask("/admin/reload", body, Authorization=f"Bearer {ADMIN}")


def test_a_reload_grows_ranges_and_refuses_to_reassign_pairs(tmp_path: Path) -> None:
    site = Site(tmp_path)
    content = json.loads(json.dumps(site.content))
    del content["shadow"]
    site.write(content)
    with served(site.v3, site.store, *site.flags) as server:
        free = site.of_arm("treatment")
        arms = content["test"]["arms"]
        arms["v4"]["range"] = [0.4, 0.6]
        site.write(content)
        refused = reload(server)
        assert (refused.status, "the range of arm v4 shrinks" in refused.json["error"]) == (422, True)
        arms["v4"]["range"] = [0.4, 1]
        site.write(content)
        assert site.expected(free).arm == "v4"
        assert ask(server, free).json["model_version"] == site.version("v3"), "nothing changed yet"
        assert reload(server).json == {"model_version": site.version("v3")}
        assert ask(server, free).json["model_version"] == site.version("v4")
        bundles.rewrite(site.v4, "tokenizer.json", lambda text: json.dumps(json.loads(text)))
        changed = reload(server)
        assert (changed.status, "the bundle of arm v4 has version" in changed.json["error"]) == (422, True)
        assert reload(server, bundle=str(site.v4)).status == 422
        other = tmp_path / "ended.yaml"
        other.write_text(yaml.safe_dump({"holdout": content["holdout"]}))
        assert reload(server, experiments=str(other)).status == 200
        assert ask(server, free).json["model_version"] == site.version("v3")
        assert server.suggest().status == 200
        assert server.metric('jaxtempl_reloads_total{outcome="refused"}') == 3
        assert server.stop() == 0
    without = [*command(site.v3, site.store), "--port=0"]
    done = subprocess.run(without, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "would reassign pairs: the holdout changes" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("holdout: {salt: h}", "missing required field `share`"),
        ("shadow: {bundle: nowhere, share: 0.5}", "nowhere is not a bundle"),
        ("shadow: {bundle: nowhere, share: 0}", "shadow.share"),
    ],
)
def test_an_invalid_file_is_refused_at_the_start(site: Site, tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    config = ServeConfig(bundle=str(site.v3), experiments=f"{tmp_path}/bad.yaml", store=f"sqlite:///{tmp_path}/e")
    with pytest.raises(UserError, match=re.escape(words)):
        serve(config)
    assert not (tmp_path / "e").exists()
