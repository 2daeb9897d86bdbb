"""bin/loadtest against a real HTTP server whose answers, delays and failures each test chooses."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jaxtempl import cli, loadtest
from jaxtempl.commands.loadtest import main
from jaxtempl.config.paths import ROOT
from jaxtempl.config.serving import LoadtestConfig
from jaxtempl.loadtest import client, pipeline
from jaxtempl.loadtest.client import ANSWERED, Exchange

CANARY = "CANARY-7f3a my card was stolen"
MODEL = {
    "version": "v1",
    "size": "nano",
    "dtype": "fp32",
    "backend": "onnx",
    "window": 512,
    "buckets": [64, 128, 256, 512],
    "slots": 8,
    "templates": 4,
}
ANSWER = {
    "suggestion_id": "0" * 32,
    "suggestions": [{"template": "greet", "text": CANARY, "probability": 0.9}],
    "model_version": "v1",
    "tokens": 70,
    "dropped_messages": 0,
    "latency_ms": 1.0,
}


class Server:
    """A server with one worker that handles requests one by one, as a model does.

    Attributes:
        url: Address of the server.
        asked: Bodies of the requests, in order of arrival.
        reply: Function from a request's number to the delay in seconds and the response.
        most: Largest number of requests held at once.
        ready: Status code of /readyz.
        token: Bearer token that /v1/model requires, or an empty string.
    """

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.reply: Callable[[int], tuple[float, Response]] = lambda _: (0.0, JSONResponse(ANSWER))
        self.ready, self.token, self.url = 200, "", ""
        self.most = self._held = 0
        self._worker = asyncio.Lock()

    async def suggest(self, request: Request) -> Response:
        number = len(self.asked)
        self.asked.append(await request.json())
        seconds, response = self.reply(number)
        self._held += 1
        self.most = max(self.most, self._held)
        if seconds:
            async with self._worker:
                await asyncio.sleep(seconds)
        self._held -= 1
        return response

    async def model(self, request: Request) -> Response:
        known = request.headers.get("authorization") == f"Bearer {self.token}" if self.token else True
        return JSONResponse(MODEL) if known else JSONResponse({"error": "no"}, 401)

    def routes(self) -> list[Route]:
        return [
            Route("/readyz", lambda _: Response(status_code=self.ready)),
            Route("/v1/model", self.model),
            Route("/v1/suggest", self.suggest, methods=["POST"]),
        ]


@contextlib.contextmanager
def serving(app: Any) -> Generator[tuple[str, uvicorn.Server]]:
    """Serve an ASGI application on a free port in a thread; yield its URL and the server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, ws="none", log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def server() -> Generator[Server]:
    made = Server()
    with serving(Starlette(routes=made.routes())) as (made.url, _):
        yield made


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    path = tmp_path / "cases.jsonl"
    messages = [("customer", CANARY), ("advocate", "hello"), ("customer", "thanks"), ("advocate", "bye")]
    lines = [
        json.dumps(
            {"case_id": f"{i}", "messages": [{"role": r, "text": f"{t} {i}", "template": "t"} for r, t in messages]}
        )
        for i in range(5)
    ]
    path.write_text("\n".join([*lines, '{"case_id": "bad"}']) + "\n")
    return path


@pytest.fixture
def asked(server: Server, cases: Path, tmp_path: Path) -> Callable[..., LoadtestConfig]:
    def asked_(**changes: Any) -> LoadtestConfig:
        given = {"rates": (50.0,), "minutes": 1 / 60, "warmup": 0.0, "arrivals": "constant", **changes}
        return LoadtestConfig(url=server.url, cases=str(cases), out=tmp_path / "out", **given)

    return asked_


ConfigFactory = Callable[..., LoadtestConfig]


def exchanged(url: str, due: list[float], timeout: float = 5.0) -> list[Exchange]:
    """Send requests to a server and return their exchanges."""

    async def all_() -> list[Exchange]:
        async with client.open_session(timeout, "") as http:
            bodies = [b'{"case_id":"%d"}' % i for i in range(len(due))]
            return await client.send_all(http, url, np.array(due), bodies, lambda: None)

    return asyncio.run(all_())


def test_a_stall_raises_the_latency_of_every_request_due_during_it(server: Server, asked: ConfigFactory) -> None:
    """A closed loop, which waits for each answer, measures the stall only once."""
    server.reply = lambda number: (0.6 if number == 10 else 0.0001, JSONResponse(ANSWER))
    row = pipeline.run(asked(minutes=0.03))["rates"][0]
    assert row["requests"] == row[ANSWERED] == 90
    assert row["run"]["max"] >= 600
    assert row["run"]["p90"] >= 300  # 30 of 90 requests were due in the stall
    assert server.most >= 20
    server.asked.clear()
    closed = [exchanged(server.url, [0.0])[0].latency for _ in range(90)]
    assert max(closed) >= 0.6
    assert np.quantile(closed, 0.9) < 0.3


def test_latency_counts_from_the_due_time(server: Server) -> None:
    found = exchanged(server.url, [-0.5, 0.0])
    assert [e.outcome for e in found] == [ANSWERED] * 2
    assert found[0].lag >= 0.5
    assert all(e.latency > e.lag for e in found)


def test_a_row_is_void_if_the_generator_does_not_keep_up(
    asked: ConfigFactory, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_once = client._post

    async def slow(*given: Any) -> tuple[str, int]:
        if len(server.asked) == 5:
            time.sleep(0.2)  # blocks the event loop and delays all due requests
        return await asked_once(*given)

    monkeypatch.setattr(client, "_post", slow)
    found = pipeline.run(asked())
    assert "did not keep up" in found["rates"][0]["void"]
    assert found["rates"][0]["lag_ms"]["max"] >= 150
    assert found["capacity"] == {"p99": None, "max": None}
    assert "void: the generator" in loadtest.report.format_table(found)
    assert "is void: the generator" in (asked().out / "index.html").read_text()


def test_outcomes_are_counted_by_kind(server: Server, asked: ConfigFactory) -> None:
    said: dict[int, Response] = {
        0: JSONResponse({"error": "full"}, 429),
        1: JSONResponse({"error": "late"}, 504),
        2: JSONResponse({"error": "newer"}, 409),
        3: JSONResponse({"error": CANARY}, 500),
        4: JSONResponse({"error": "field"}, 422),
        5: Response("no JSON"),
        6: JSONResponse(ANSWER | {"suggestions": []}),
        7: JSONResponse(ANSWER | {"suggestions": [], "no_suggestion": "none is probable enough"}),
        8: Response(status_code=307, headers={"location": "/v1/suggest"}),
    }
    server.reply = lambda number: (2.0 if number == 49 else 0.0, said.get(number, JSONResponse(ANSWER)))
    row = pipeline.run(asked(timeout=1.0))["rates"][0]
    assert {key: row[key] for key in ("requests", "answered", "shed", "late", "superseded")} == {
        "requests": 50,
        "answered": 41,
        "shed": 1,
        "late": 1,
        "superseded": 1,
    }
    kinds = ["empty answer", "not an answer", "status 307", "status 422", "status 500", "timeout"]
    assert row["errors"] == dict.fromkeys(kinds, 1)
    assert row["in_budget"] <= 41 / 50  # an unanswered request is not within the budget


def test_the_loadtest_continues_and_counts_errors_after_the_server_exits(cases: Path, tmp_path: Path) -> None:
    made = Server()
    with serving(Starlette(routes=made.routes())) as (url, server):

        def last(number: int) -> tuple[float, Response]:
            server.should_exit = number >= 5
            return 0.0, JSONResponse(ANSWER)

        made.reply = last
        found = pipeline.run(
            LoadtestConfig(
                url=url, cases=str(cases), rates=(20.0, 40.0), minutes=0.02, warmup=0.0, arrivals="constant",
                out=tmp_path / "out",
            )
        )  # fmt: skip
    first, second = found["rates"]
    assert first["answered"] >= 5
    assert first["answered"] + sum(first["errors"].values()) == 24
    assert second["errors"] == {"no connection": 48}
    assert second["run"] is second["peak_minute"] is second["tokens"] is None
    assert found["capacity"]["max"] is None


def test_warm_up_requests_are_sent_but_not_counted(server: Server, asked: ConfigFactory) -> None:
    server.reply = lambda number: (0.0, JSONResponse(ANSWER, 500 if number < 25 else 200))
    row = pipeline.run(asked(warmup=0.5))["rates"][0]
    assert len(server.asked) == 75
    assert (row["requests"], row["answered"], row["errors"]) == (50, 50, {})


def test_the_same_seed_sends_the_same_requests(server: Server, asked: ConfigFactory) -> None:
    def run(**changes: Any) -> tuple[list[str], list[int]]:
        server.asked.clear()
        found = pipeline.run(asked(rates=(100.0, 50.0), minutes=0.006, arrivals="poisson", overwrite=True, **changes))
        said = sorted(f"{body['case_id']}: {body['messages']}" for body in server.asked)
        return said, [row["requests"] for row in found["rates"]]

    said, counts = run()
    assert run() == (said, counts)
    assert run(seed=1)[1] != counts


def test_each_request_has_its_own_case_and_ends_before_an_advocates_reply(server: Server, asked: ConfigFactory) -> None:
    pipeline.run(asked(rates=(50.0, 25.0)))
    names = [body["case_id"] for body in server.asked]
    assert set(names) == {f"loadtest-0-{rate}-{i}" for rate in (50, 25) for i in range(rate)}
    assert {len(body["messages"]) for body in server.asked} == {1, 3}
    assert all(message.keys() == {"role", "text"} for body in server.asked for message in body["messages"])


def test_output_and_reports_contain_no_message_text(
    server: Server, asked: ConfigFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda number: (0.0, JSONResponse(ANSWER if number % 2 else {"error": CANARY}, 200))
    given = asked()
    flags = [f"--url={given.url}", f"--cases={given.cases}", f"--out={given.out}", "--rates=50", "--minutes=0.01"]
    assert cli.run(main, [*flags, "--warmup=0"]) == 0
    told = capsys.readouterr()
    written = {path.name: path.read_text() for path in given.out.iterdir()}
    assert set(written) == {"report.json", "index.html"}
    assert all("CANARY" not in text and "stolen" not in text for text in (told.out, told.err, *written.values()))
    assert "v1" in told.out
    report = json.loads(written["report.json"])
    assert (report["format"], report["kind"], report["model"]) == (1, "loadtest", MODEL)
    assert report["inputs"] == {"cases": 5, "contexts": 10, "bad": {"missing field": 1}}
    assert report["rates"][0]["errors"].keys() == {"not an answer"}
    assert report["client"]["cores"] >= 1


def failed(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    """Return the exit code and the single line on stderr."""
    code = cli.run(main, flags)
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    return code, told


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--cases=", "pass --cases=FILE"),
        ("--rates=", "--rates="),
        ("--rates=1,0", "pass finite numbers above 0"),
        ("--rates=inf", "pass finite numbers above 0"),
        ("--minutes=0", "pass finite numbers above 0"),
        ("--timeout=0", "pass finite numbers above 0"),
        ("--warmup=inf", "pass a finite number of seconds"),
        ("--url=localhost", "http://HOST:PORT"),
        ("--url=http://user:secret@localhost", "--token=FILE"),
        ("--device=a11", "allowed: none, a10"),
        ("--arrivals=never", "allowed: poisson, constant, bursty"),
    ],
)
def test_a_wrong_flag_prints_one_error_line(flag: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = failed(capsys, "--cases=cases.jsonl", flag)
    assert code == 2
    assert said in told
    assert "secret" not in told


def test_device_and_flops_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert failed(capsys, "--cases=cases.jsonl", "--device=a10", "--flops=1e12")[0] == 2


def test_an_unusable_server_prints_one_error_line(
    server: Server, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--cases={cases}", f"--out={tmp_path}/out", "--rates=20", "--minutes=0.01", "--warmup=0"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert failed(capsys, *flags, f"--url=http://127.0.0.1:{port}")[1].count("cannot be reached")
    flags.append(f"--url={server.url}")
    server.ready = 503
    assert "is not ready (503)" in failed(capsys, *flags)[1]
    server.ready = 404
    assert "pass the address of bin/serve" in failed(capsys, *flags)[1]
    server.ready, server.token = 200, "sesame"
    assert "pass --token=FILE" in failed(capsys, *flags)[1]
    (tmp_path / "token").write_text("wrong\n")
    assert "requires a valid bearer token" in failed(capsys, *flags, f"--token={tmp_path}/token")[1]
    (tmp_path / "token").write_text("sesame\nanother\n")
    assert cli.run(main, [*flags, f"--token={tmp_path}/token"]) == 0
    assert failed(capsys, *flags, "--token=nowhere")[0] == 1
    assert not list(tmp_path.glob(".out*")), "no partial output remains"


def test_another_service_prints_one_error_line(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Starlette(routes=[Route("/{path:path}", lambda _: Response("welcome"))])) as (url, _):
        assert "is not an answer of bin/serve" in failed(capsys, f"--cases={cases}", f"--url={url}")[1]


def test_cases_without_contexts_print_one_error_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps({"case_id": "a", "messages": [{"role": "advocate", "text": CANARY}]}) + "\nnoise\n")
    code, told = failed(capsys, f"--cases={path}", f"--url={server.url}")
    assert code == 1
    assert "no context to request suggestions for (1 good and 1 bad records)" in told
    assert failed(capsys, "--cases=nowhere.jsonl", f"--url={server.url}")[0] == 1


def test_a_folder_with_other_files_is_never_overwritten(
    server: Server, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    flags = [f"--cases={cases}", f"--url={server.url}", f"--out={tmp_path}/mine"]
    assert "exists already" in failed(capsys, *flags)[1]
    assert "is not a loadtest" in failed(capsys, *flags, "--overwrite")[1]
    assert not server.asked


def test_loadtest_runs_without_jax(server: Server, cases: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("jax", "flax", "torch", "tensorflow_datasets"):
        (blocked / f"{name}.py").write_text("raise ImportError('blocked')\n")
    flags = [f"--url={server.url}", f"--cases={cases}", f"--out={tmp_path}/out", "--rates=20", "--minutes=0.02"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxtempl", "loadtest", *flags, "--warmup=0"],
        env={**os.environ, "PYTHONPATH": f"{blocked}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "requests/s" in done.stdout


def test_the_limit_of_open_files_is_raised_to_the_hard_limit() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        pipeline._allow_connections()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
