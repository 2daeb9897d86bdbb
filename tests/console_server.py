"""A stand-in for the server that follows the wire contract and records the console's requests and events."""

import contextlib
import socket
import threading
from collections.abc import Callable, Generator
from typing import Any

import msgspec
import pytest
import uvicorn
from playwright.sync_api import Page
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jaxtempl.serve import schema
from jaxtempl.serve.console.page import routes
from jaxtempl.text.cases import Case, Message

SUGGESTED = [
    ("CARD_TRACKING", "Your card was mailed on {date} and should be with you shortly.", 0.62),
    ("CARD_RETURNED_MAIL", "The mail carrier returned your card to us, so we need to check your address first.", 0.21),
    ("CARD_EXPEDITE", "We can send it by courier in two days for $12.00. Would you like that?", 0.08),
    ("ASK_ZIP", "For your security, please confirm the ZIP code on your account.", 0.04),
    ("LOOKING_INTO_IT", "Thank you for that. Please give me a moment while I look into this for you.", 0.004),
]
OTHERS = [
    schema.TemplateAnswer("REFUND_PROCESSING", "The refund is being processed.", True),
    schema.TemplateAnswer("REFUND_NOT_SENT", "The merchant has not sent us this refund yet.", True),
    schema.TemplateAnswer("REFUND_2019", "We no longer say this about a refund.", False),
]
CASES = [
    Case(
        "card",
        (
            Message("customer", "Where is my card?"),
            Message("advocate", "As the advocate of then replied."),
            Message("customer", "My ZIP is 30301."),
            Message("system", "lookup_card -> mailed Nov 14"),
        ),
    )
]


class StandIn:
    """A stand-in for the server.

    Attributes:
        contexts: Suggestion requests, in order of arrival.
        events: Events, in order of arrival.
        refuse: Error statuses of the next requests to each path, in order.
        token: Bearer token that requests to /v1 must carry; empty for none.
        suggested: Suggestions, best first.
        no_suggestion: Reason for having no suggestion; None to suggest.
        version: Version of the model.
        templates: Templates of the model.
    """

    def __init__(self) -> None:
        self.contexts: list[schema.SuggestRequest] = []
        self.events: list[schema.Event] = []
        self.refuse: dict[str, list[int]] = {"/v1/suggest": [], "/v1/events": []}
        self.token = ""
        self.suggested = SUGGESTED
        self.no_suggestion: str | None = None
        self.version = "9f8e7d6c5b4a"
        self.templates = [*(schema.TemplateAnswer(id_, text, True) for id_, text, _ in SUGGESTED), *OTHERS]
        posts = [Route(path, self.answer, methods=["POST"]) for path in ("/v1/suggest", "/v1/events")]
        gets = [Route(path, self.answer) for path in ("/v1/model", "/v1/templates")]
        self.app = Starlette(routes=[*posts, *gets, *routes(CASES, dict)])

    async def answer(self, request: Request) -> Response:
        """Return the next error status of the path, if any, or its regular response."""
        path = request.url.path
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return self.refusal(401)
        if self.refuse.get(path):
            return self.refusal(self.refuse[path].pop(0))
        answers: dict[str, Any] = {
            "/v1/suggest": self.suggest,
            "/v1/events": self.event,
            "/v1/model": lambda _: schema.ModelAnswer(
                version=self.version, size="nano", dtype="fp32", backend="fake", window=512, buckets=[512], slots=9,
                templates=7
            ),
            "/v1/templates": lambda _: self.templates,
        }  # fmt: skip
        return Response(msgspec.json.encode(answers[path](await request.body())), media_type="application/json")

    def refusal(self, status: int) -> Response:
        body = msgspec.json.encode(schema.ErrorAnswer("refused as a test wants it"))
        return Response(body, status, {"Retry-After": "1"} if status == 429 else {}, "application/json")

    def suggest(self, body: bytes) -> schema.SuggestAnswer:
        self.contexts.append(schema.decode(schema.SuggestRequest, body))
        return schema.SuggestAnswer(
            suggestion_id=f"{len(self.contexts):032x}",
            suggestions=[] if self.no_suggestion else [schema.Suggested(*each) for each in self.suggested],
            model_version=self.version,
            tokens=143,
            dropped_messages=2,
            latency_ms=11.94,
            no_suggestion=self.no_suggestion,
        )

    def event(self, body: bytes) -> dict[str, str]:
        self.events.append(schema.decode(schema.Event, body))
        return {}

    def told(self) -> list[tuple[str, int, str | None, int | None]]:
        """Return the actions on suggestions: name, number of the suggestions, template, position."""
        told = [(e.event, int(e.suggestion_id, 16), e.template, e.position) for e in self.events]
        return [event for event in told if event[0] not in ("opened", "shown")]


@contextlib.contextmanager
def served(app: Starlette) -> Generator[str]:
    """Serve an app on a free port during the block, and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def server() -> StandIn:
    return StandIn()


@pytest.fixture
def url(server: StandIn) -> Generator[str]:
    with served(server.app) as address:
        yield address


def wait_for(page: Page, server: StandIn, *wanted: tuple[str, int, str | None, int | None]) -> None:
    """Wait for these actions: name, number of the suggestions, template, position."""
    until(page, lambda: len(server.told()) >= len(wanted))
    assert server.told() == list(wanted)


def until(page: Page, happened: Callable[[], bool]) -> None:
    """Wait at most ten seconds for a condition, while the page runs."""
    for _ in range(200):
        if happened():
            return
        page.wait_for_timeout(50)
