"""Responses of a running server; each test sends requests to the real command in its own process."""

import json
import sqlite3
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bundles
import pytest
import serving
from exported import export_bundle, run_with_dataset
from serving import MESSAGES, PATIENT, Server, served, started
from tiny import template

from jaxtempl.bundle.bundle import Bundle
from jaxtempl.serve.inference.suggester import bundle_suggester
from jaxtempl.text.cases import parse_case

TEXTS = [f"message {i} of a case {'that is longer ' * (i % 40)}" for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.write_serving_bundle(tmp_path_factory.mktemp("serve") / "bundle")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with one length, for fake networks that are slow to warm up."""
    return bundles.write_serving_bundle(tmp_path_factory.mktemp("quick") / "bundle", window=64, buckets=[64])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "events.sqlite"


@pytest.fixture(scope="module")
def server(folder: Path, store: Path) -> Iterator[Server]:
    with served(folder, store, "--max_body=100000") as running:
        yield running


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a real classifier with two templates of the same text."""
    folder = tmp_path_factory.mktemp("real")
    templates = [template(i, name, text=said) for i, (name, said) in enumerate(
        [("greet", "Hello!"), ("hello", "hello"), ("card", "Your card is blocked."), ("bye", "Bye!"), ("wait", "Wait.")]
    )]  # fmt: skip
    made, _ = run_with_dataset(folder, templates)
    return export_bundle(made, folder / "bundle")


def rows(store: Path, query: str, *values: Any) -> list[Any]:
    connection = sqlite3.connect(store)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def event(suggestion: str, name: str = "picked", **fields: Any) -> dict[str, Any]:
    return {"suggestion_id": suggestion, "event": name, "at": datetime.now(UTC).isoformat(), **fields}


def test_a_response_has_every_documented_field(server: Server, folder: Path) -> None:
    got = server.suggest()
    assert got.status == 200
    answer = got.json
    assert set(answer) == {
        "suggestion_id", "suggestions", "model_version", "tokens", "dropped_messages", "latency_ms"
    }  # fmt: skip
    opened = Bundle.open(folder)
    assert answer["model_version"] == opened.manifest["version"]
    assert answer["tokens"] == len(opened.tokenizer.encode(["hi Hello! my card was stolen"])[0])
    assert answer["dropped_messages"] == 0
    assert answer["latency_ms"] > 0
    shares = [each["probability"] for each in answer["suggestions"]]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    texts = {each.id: each.text for each in opened.templates}
    assert all(each["text"] == texts[each["template"]] for each in answer["suggestions"])
    assert "old" not in {each["template"] for each in answer["suggestions"]}, "retired templates are not suggested"


def test_only_allowed_templates_are_suggested_and_renormalised(server: Server) -> None:
    both = server.suggest(allowed=["card", "refund", "old", "unheard of"]).json["suggestions"]
    assert {each["template"] for each in both} == {"card", "refund"}
    assert sum(each["probability"] for each in both) == pytest.approx(1)
    all_six = {each["template"]: each["probability"] for each in server.suggest(k=6).json["suggestions"]}
    assert both[0]["probability"] / both[1]["probability"] == pytest.approx(
        all_six[both[0]["template"]] / all_six[both[1]["template"]]
    )


def test_the_response_states_why_nothing_is_suggested(server: Server) -> None:
    best = server.suggest().json["suggestions"][0]["probability"]
    assert server.suggest(threshold=best - 1e-6).json["suggestions"]
    answer = server.suggest(threshold=best + 1e-6).json
    assert (answer["suggestions"], answer["no_suggestion"]) == ([], "the best one is below the threshold")
    none = server.suggest(allowed=[]).json
    assert (none["suggestions"], none["no_suggestion"]) == ([], "none of the allowed templates is known and active")


def test_blank_messages_are_dropped_as_in_training(server: Server) -> None:
    blank = [MESSAGES[0], {"role": "system", "text": " \n"}, *MESSAGES[1:]]
    one, other = (server.suggest(messages=said).json for said in (MESSAGES, blank))
    assert (one["tokens"], one["suggestions"]) == (other["tokens"], other["suggestions"])
    got = server.suggest(messages=[{"role": "customer", "text": "  "}])
    assert (got.status, got.json["field"], got.json["error"]) == (422, "messages", "no message has text")


def test_dropped_messages_are_counted(server: Server) -> None:
    answer = server.suggest(messages=[{"role": "customer", "text": "word " * 100}] * 8).json
    assert answer["tokens"] <= 512
    assert answer["dropped_messages"] >= 3


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"case_id": "c"}, 422, "messages"),
        ({"case_id": "c", "messages": []}, 422, "messages"),
        ({"case_id": "c", "messages": [{"role": "boss", "text": "x"}]}, 422, "messages[0].role"),
        ({"case_id": "c", "messages": MESSAGES, "k": 0}, 422, "k"),
        ({"case_id": "c", "messages": MESSAGES, "allowed": [1]}, 422, "allowed[0]"),
        ({"messages": MESSAGES}, 422, "case_id"),
        (b"{", 422, None),
        (b"x" * 100_001, 413, None),
    ],
)
def test_the_response_to_an_invalid_request_names_the_field(
    server: Server, body: Any, status: int, field: str | None
) -> None:
    got = server.ask("/v1/suggest", body)
    assert (got.status, got.json.get("field")) == (status, field)
    assert got.json["request_id"] == got.headers["x-request-id"]


def test_a_clients_request_id_is_kept_if_it_is_valid(server: Server) -> None:
    assert server.ask("/livez", X_Request_Id="abc-1").headers["x-request-id"] == "abc-1"
    assert len(server.ask("/livez", X_Request_Id='a"b').headers["x-request-id"]) == 32


def test_events_are_stored_once_with_their_suggestion(server: Server, store: Path) -> None:
    answer = server.suggest(case="kept", advocate_id="ann").json
    name = answer["suggestions"][1]["template"]
    sent = event(answer["suggestion_id"], template=name, position=2)
    assert [server.ask("/v1/events", sent).status for _ in range(3)] == [200] * 3
    query = "SELECT s.case_id, s.advocate_id, s.templates, e.event, e.template, e.position FROM events e JOIN suggestions s USING (suggestion_id) WHERE suggestion_id = ?"  # noqa: E501
    [(case, advocate, templates, *kept)] = rows(store, query, answer["suggestion_id"])
    assert (case, advocate, kept) == ("kept", "ann", ["picked", name, 2])
    assert json.loads(templates) == [each["template"] for each in answer["suggestions"]]


def test_an_event_without_a_suggestion_is_rejected(server: Server) -> None:
    assert server.ask("/v1/events", event("0" * 32)).status == 404
    got = server.ask("/v1/events", event("0" * 32) | {"at": "1812-01-01T00:00:00Z"})
    assert (got.status, got.json["field"]) == (422, "at")


def test_responses_under_load_equal_those_of_single_requests(server: Server) -> None:
    def ask(i: int) -> Any:
        said = [{"role": "customer", "text": text} for text in TEXTS[: 1 + i % len(TEXTS)]]
        got = server.suggest(case=f"load-{i}", messages=said)
        assert got.status == 200
        return [(each["template"], each["probability"]) for each in got.json["suggestions"]]

    single = [ask(i) for i in range(len(TEXTS))]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, range(4 * len(TEXTS))))
    assert together == single * 4
    assert len({tuple(each) for each in single}) > 3, "too few distinct responses to detect a mix-up"


def test_a_real_model_gives_the_suggestions_of_bin_suggest_in_batches(real: Bundle, tmp_path: Path) -> None:
    suggester = bundle_suggester(real)
    with served(real.folder, tmp_path / "e.sqlite", "--backend=onnx", "--timeout_ms=10000") as server:

        def ask(i: int) -> Any:
            said = [{"role": "customer", "text": TEXTS[i]}]
            answer = server.suggest(case=f"real-{i}", messages=said).json
            return answer, suggester.suggest(parse_case({"case_id": "c", "messages": said}).messages, 5)

        with ThreadPoolExecutor(8) as pool:
            pairs = list(pool.map(ask, range(40)))
        assert server.metric('jaxtempl_batch_rows_bucket{le="1.0"}') < server.metric("jaxtempl_batch_rows_count")
        facts = server.ask("/v1/model").json
    for answer, expected in pairs:
        assert [each["template"] for each in answer["suggestions"]] == [s.template for s in expected.suggestions]
        shares = [each["probability"] for each in answer["suggestions"]]
        assert shares == pytest.approx([s.probability for s in expected.suggestions], abs=1e-5)
        named = {each["template"] for each in answer["suggestions"]}
        assert len(named & {"greet", "hello"}) == 1, "templates of the same text are suggested once"
        assert len(named) == 4
    assert (facts["backend"], facts["templates"], facts["size"]) == ("onnx", 5, "nano")


def test_the_server_reports_its_templates_and_model(server: Server, folder: Path) -> None:
    told = server.ask("/v1/templates").json
    assert told == [{"id": t.id, "text": t.text, "active": t.active} for t in Bundle.open(folder).templates]
    facts = server.ask("/v1/model").json
    assert (facts["backend"], facts["window"], facts["buckets"]) == ("fake", 512, [64, 128, 256, 512])


def test_a_server_is_live_before_it_is_ready(quick: Path, tmp_path: Path) -> None:
    port = serving.free_port()
    with started(quick, tmp_path / "e.sqlite", "--fake_ms=600", port=port) as server:
        while True:
            try:
                live = server.ask("/livez")
                break
            except urllib.error.URLError:
                time.sleep(0.02)
        early = {path: server.ask(path).status for path in ("/readyz", "/v2/health/ready", "/v1/model")}
        refused = server.suggest()
        assert (live.status, set(early.values()), refused.status) == (200, {503}, 503)
        assert refused.headers["retry-after"] == "1"
        server.wait()
        assert server.ask("/readyz").status == 200
        assert server.suggest().status == 200


def test_an_overloaded_server_sheds_requests_and_recovers(quick: Path, tmp_path: Path) -> None:
    with served(quick, tmp_path / "e.sqlite", "--fake_ms=50", "--queue=4", "--max_batch_size=1", PATIENT) as server:
        with ThreadPoolExecutor(30) as pool:
            got = list(pool.map(lambda i: server.suggest(case=f"o-{i}"), range(30)))
        statuses = [each.status for each in got]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 5
        shed = next(each for each in got if each.status == 429)
        assert int(shed.headers["retry-after"]) >= 1
        assert server.suggest().status == 200
        assert server.metric('jaxtempl_refused_total{reason="full"}') == statuses.count(429)


def test_a_newer_request_of_a_case_supersedes_the_pending_one(quick: Path, tmp_path: Path) -> None:
    with served(quick, tmp_path / "e.sqlite", "--fake_ms=600", "--max_batch_size=1", PATIENT) as server:
        with ThreadPoolExecutor(6) as pool:
            first = pool.submit(server.suggest, "other")
            time.sleep(0.05)
            same = []
            for _ in range(4):
                same.append(pool.submit(server.suggest, "same"))
                time.sleep(0.02)
            statuses = [each.result().status for each in same]
        assert first.result().status == 200
        assert statuses == [409, 409, 409, 200]


def test_a_disconnected_client_frees_its_place_and_a_late_request_gets_504(quick: Path, tmp_path: Path) -> None:
    flags = ("--fake_ms=600", "--max_batch_size=1", "--queue=1", PATIENT)
    with served(quick, tmp_path / "e.sqlite", *flags) as server, ThreadPoolExecutor(4) as pool:
        first = pool.submit(server.suggest, "a")
        time.sleep(0.1)
        with pytest.raises(TimeoutError):
            server.ask("/v1/suggest", {"case_id": "b", "messages": MESSAGES}, timeout=0.25)
        while server.metric("jaxtempl_queue_depth"):
            time.sleep(0.02)
        assert server.suggest("c").status == 200
        assert first.result().status == 200
        assert server.metric('jaxtempl_answers_total{route="suggest",status="499"}') == 1
    with served(quick, tmp_path / "e.sqlite", "--fake_ms=300", "--timeout_ms=100") as server:
        assert server.suggest().status == 504
        assert any("take longer than --timeout_ms" in line for line in server.log), (
            "the log has no warning about --timeout_ms"
        )


def test_the_deadline_holds_while_a_long_window_is_tokenized(quick: Path, tmp_path: Path) -> None:
    with served(quick, tmp_path / "e.sqlite", "--timeout_ms=60") as server:
        got = server.suggest(messages=[{"role": "customer", "text": "word " * 200_000}])
        assert got.status == 504
        assert server.metric("jaxtempl_queue_depth") == 0
        assert any(server.suggest().status == 200 for _ in range(100)), (
            "the server does not recover while a thread still tokenizes"
        )
