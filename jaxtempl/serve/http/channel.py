"""The channel of one request: its id, and a close that loses no answer."""

import asyncio
import contextlib
import re
import secrets
from collections.abc import Mapping

from starlette.types import Message, Receive, Scope, Send

LINGER_SECONDS = 10  # maximum time of reading the rest of a body that the answer did not wait for
IDLE_SECONDS = 1  # the same, while nothing arrives


class Channel:
    """One request and its answer; it stands between the server library and the application.

    An answer that comes before the body has arrived closes the connection. The rest of the body is discarded first:
    a socket that is closed with unread bytes resets the connection, and the client may then never see the answer.

    Attributes:
        request_id: The client's id if it is short and plain, otherwise a new one.
        status: Status of the answer; 0 before it starts.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = _request_id(headers.get(b"x-request-id", b"").decode("latin-1"))
        self.status = 0
        self._receive, self._send = receive, send
        self._unread, self._closing = _has_body(headers), False
        self._waits = b"expect" in headers  # the client sends its body when the first part of it is read

    async def receive(self) -> Message:
        """Return the next part of the request."""
        message = await self._receive()
        self._unread = bool(message.get("more_body"))
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer; `finish` ends an answer that closes the connection."""
        if message["type"] == "http.response.start":
            if not self._waits:
                await self._discard(0)  # what has arrived
            self.status, self._closing = message["status"], self._unread
            message["headers"] = [*message["headers"], (b"x-request-id", self.request_id.encode())]
            if self._closing:
                message["headers"].append((b"connection", b"close"))
        elif self._closing:
            message["more_body"] = True
        await self._send(message)

    async def finish(self, seconds: float = LINGER_SECONDS) -> None:
        """Discard the rest of the body, for some seconds at most, and let the server library close the connection."""
        if self._closing:
            await self._discard(seconds)
            await self._send({"type": "http.response.body"})

    async def _discard(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._unread:
                    async with asyncio.timeout(IDLE_SECONDS):  # wait_for of Python 3.11 can lose the outer timeout
                        await self.receive()


def _has_body(headers: Mapping[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def _request_id(header: str) -> str:
    return header if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", header) else secrets.token_hex(16)
