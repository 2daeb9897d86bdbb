"""An experiment from the first request to the analysis, with real processes, clients in threads and killed servers."""

import functools
import json
import random
import signal
import subprocess
import sys
import time
import urllib.error
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
import pytest
from experiment_site import Site
from serving import MESSAGES, PATIENT, Answer, Server, free_port, served, until

from jaxtempl.config.paths import ROOT

CASES, REPLIES, ADVOCATES = 200, 2, 10
KILLED_AT = (60, 130)  # cases


class Reply(NamedTuple):
    """An acknowledged reply: its pair, the answer that the advocate saw, the names of its events."""

    pair: tuple[str, str]
    answer: dict[str, Any]
    events: tuple[str, ...]


class Client:
    """Clients that click through cases, and try again while no server answers."""

    def __init__(self) -> None:
        self.server: Server
        self.replies: list[Reply] = []
        self.cases = self.interruptions = self.unknown = 0

    def click(self, number: int) -> None:
        """Reply to each message of a case."""
        pair = f"a{number % ADVOCATES}", f"case-{number}"
        for _ in range(REPLIES):
            while not self.reply(pair, random.Random(number)):
                self.unknown += 1  # killed before it had written its answer; the pair is asked for again
        self.cases += 1

    def reply(self, pair: tuple[str, str], drawn: random.Random) -> bool:
        """Open the reply box and choose a template; return False if the store lost the suggestion before `opened`."""
        fields = {"advocate_id": pair[0], "case_id": pair[1], "messages": MESSAGES}
        answer = self.sent("/v1/suggest", fields).json
        opened = datetime.now(UTC) - timedelta(minutes=1)
        if not self.event(answer, "opened", opened):
            return False
        picked = answer["suggestions"][0]["template"] if answer["suggestions"] else ""
        names = ("shown", "picked") if picked else ("searched",)
        for name in names:
            fields = {"template": picked or "cnry4711-card"} if name != "shown" else {}
            assert self.event(answer, name, opened + timedelta(seconds=drawn.lognormvariate(1, 0.7)), **fields)
        self.replies.append(Reply(pair, answer, ("opened", *names)))
        return True

    def event(self, answer: dict[str, Any], name: str, at: datetime, **fields: Any) -> bool:
        """Send an event until it is acknowledged; return False if its suggestion is not stored."""
        body = {"suggestion_id": answer["suggestion_id"], "event": name, "at": at.isoformat(), **fields}
        return self.sent("/v1/events", body).status == 200

    def sent(self, path: str, body: dict[str, Any]) -> Answer:
        while True:
            try:
                got = self.server.ask(path, body)
            except (OSError, urllib.error.URLError, HTTPException):
                got = None
            if got and got.status in (200, 404):
                return got
            assert got is None or got.status == 503, got
            self.interruptions += 1
            time.sleep(0.05)


def clicked(site: Site) -> Client:
    """Click through all cases, while the server is killed and started again."""
    client, port = Client(), free_port()
    with ThreadPoolExecutor(4) as pool:
        pending: list[Future[None]] = []
        for end, number in ((KILLED_AT[0], signal.SIGKILL), (KILLED_AT[1], signal.SIGKILL), (CASES, signal.SIGTERM)):
            with served(site.v3, site.store, *site.flags, PATIENT, port=port) as client.server:
                pending = pending or [pool.submit(client.click, case) for case in range(CASES)]
                until(functools.partial(has_come_to, client, end, pending))
                client.server.stop(number)
        for each in pending:
            each.result()
    return client


def has_come_to(client: Client, end: int, pending: list["Future[None]"]) -> bool:
    """Return whether that many cases are done, or one has failed."""
    return client.cases >= end or any(each.done() and each.exception() for each in pending)


def run(*words: str) -> str:
    """Run a command of this project, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxtempl", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_kills_lose_double_and_reassign_no_exposure(tmp_path: Path) -> None:
    site = Site(tmp_path)
    client = clicked(site)
    assert client.interruptions
    run("serve", "events", "export", f"--store=sqlite:///{site.store}", f"--out={tmp_path / 'e.parquet'}")
    rows = pyarrow.parquet.read_table(tmp_path / "e.parquet").to_pylist()
    exposures = {row["suggestion_id"]: row for row in rows}
    assert len(client.replies) == CASES * REPLIES == len({each.answer["suggestion_id"] for each in client.replies})
    for pair, answer, _ in client.replies:
        row, expected = exposures[answer["suggestion_id"]], site.expected(pair)
        assert (row["advocate_id"], row["case_id"]) == pair
        assert (row["experiment"], row["arm"], row["bucket"]) == tuple(expected)
        assert row["model_version"] == answer["model_version"] == site.version(expected.arm)
        assert row["templates"] == [each["template"] for each in answer["suggestions"]]
        is_held = expected.arm == "holdout"
        assert (answer.get("no_suggestion") == "holdout", bool(row["withheld_templates"])) == (is_held, is_held)
    kept = Counter((row["suggestion_id"], row["event"]) for row in rows if row["event"])
    assert kept == Counter((each.answer["suggestion_id"], name) for each in client.replies for name in each.events)
    arms = {(row["advocate_id"], row["case_id"], row["arm"]) for row in rows}
    assert len(arms) == len({(advocate, case) for advocate, case, _ in arms}) == CASES
    assert {arm for *_, arm in arms} == {"holdout", "treatment", "v3", "v4"}
    assert len({row["config_sha256"] for row in rows}) == 1
    given = (f"--events={tmp_path / 'e.parquet'}", "--test=v3/v4", f"--experiments={site.file}")
    assert "pairs in one arm" in run("experiment", "check", *given)
    assert "the decision is one look at its end" in run(
        "experiment", "analyse", *given, f"--out={tmp_path / 'analysis'}"
    )
    report = json.loads((tmp_path / "analysis" / "report.json").read_text())
    assert all(check["passed"] for check in report["checks"])
    replied = Counter(site.expected(reply.pair).arm for reply in client.replies)
    assert {count["arm"]: (count["pairs"], count["selections"]) for count in report["counts"]} == {
        arm: (replied[arm] // REPLIES, replied[arm]) for arm in ("v3", "v4")
    }
