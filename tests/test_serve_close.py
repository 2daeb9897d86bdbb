"""An answer before the end of the body closes the connection, after a bounded wait for the rest of the body."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from jaxtempl.serve.http import channel
from jaxtempl.serve.http.channel import Channel


class Client:
    """A client of one POST.

    Attributes:
        parts: Parts of the body that still arrive, in order.
        more: Whether the body has parts that never arrive.
        endless: Whether the body has parts that arrive without end.
        late: Whether the parts arrive after the answer, not before.
        seen: Parts of the answer.
    """

    def __init__(self, *parts: bytes, more: bool = False, endless: bool = False, late: bool = True) -> None:
        self.late = late
        self.parts, self.more, self.endless, self.seen = list(parts), more, endless, list[Message]()

    async def receive(self) -> Message:
        if self.late:
            await asyncio.sleep(0)
        if not self.parts and not self.endless:
            await asyncio.Event().wait()
        part = b"part" if self.endless else self.parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(self.parts) or self.more or self.endless}

    async def send(self, message: Message) -> None:
        self.seen.append(message)

    async def refused(self, read: int = 0) -> list[bytes]:
        """Return the names and values of the answer's headers, once it has ended."""
        scope: dict[str, Any] = {"headers": [(b"content-length", b"9")]}
        each = Channel(scope, self.receive, self.send)
        for _ in range(read):
            await each.receive()
        await each.send({"type": "http.response.start", "status": 413, "headers": []})
        await each.send({"type": "http.response.body", "body": b"why"})
        closes = any(name == b"connection" for name, _ in self.seen[0]["headers"])
        assert self.seen[-1].get("more_body", False) == closes, "uvicorn closes the connection after the last part"
        async with asyncio.timeout(20):
            await each.finish()
        return [value for name, value in self.seen[0]["headers"] if name == b"connection"]


def test_the_rest_of_the_body_is_discarded_before_the_connection_closes() -> None:
    client = Client(b"123", b"456", b"789")
    assert asyncio.run(client.refused(read=1)) == [b"close"]
    assert client.parts == []
    assert [each.get("more_body", False) for each in client.seen[1:]] == [True, False]


def test_a_body_that_was_read_keeps_the_connection() -> None:
    client = Client(b"123", b"456", b"789")
    assert asyncio.run(client.refused(read=3)) == []
    assert len(client.seen) == 2


def test_a_body_that_has_arrived_keeps_the_connection() -> None:
    client = Client(b"123", b"456", b"789", late=False)
    assert asyncio.run(client.refused()) == []
    assert client.parts == []


def test_a_silent_client_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "IDLE_SECONDS", 0.01)
    client = Client(b"123", more=True)
    assert asyncio.run(client.refused()) == [b"close"]
    assert client.seen[-1] == {"type": "http.response.body"}


def test_a_client_that_never_ends_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "LINGER_SECONDS", 0.05)
    client = Client(endless=True)
    assert asyncio.run(client.refused()) == [b"close"]
    assert client.seen[-1] == {"type": "http.response.body"}
