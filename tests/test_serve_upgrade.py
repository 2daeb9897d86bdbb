"""A request that offers another protocol is read like one that does not, wherever the stream is cut into segments."""

import asyncio

import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from jaxtempl.serve.http.protocol import Protocol

POST = b"POST /a?b=c HTTP/1.1\r\nHost: here\r\nA: \xff\r\nA:\r\n"
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n"
LENGTH = b"Content-Length: 4\r\n\r\nabcd"
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n2\r\nef\r\n2\r\ngh\r\n0\r\n\r\n"
STREAM = POST + OFFER + LENGTH + b"GET /d HTTP/1.1\r\n" + OFFER + b"\r\n" + POST + OFFER + CHUNKS + POST + LENGTH
A = "POST /a b=c ['\xff', '']"
WANTED = [f"{A} abcd", "GET /d  [] ", f"{A} efgh", f"{A} abcd"]


class Transport(asyncio.Transport):
    """A connection that keeps what is written to it."""

    written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def resume_reading(self) -> None: ...

    def pause_reading(self) -> None: ...


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    body, query = (await request.body()).decode(), scope["query_string"].decode()
    answer = f"{request.method} {scope['path']} {query} {request.headers.getlist('a')} {body}"
    await Response(f"<{answer}>")(scope, receive, send)


CONFIG = uvicorn.Config(echo, ws="none")


async def answers(*parts: bytes) -> list[str]:
    """Return the bodies of the answers to a stream that arrives in parts."""
    protocol, transport = Protocol(CONFIG, ServerState(), {}), Transport()
    protocol.connection_made(transport)
    for part in parts:
        protocol.data_received(part)
    async with asyncio.timeout(20):
        while protocol.tasks:
            await asyncio.sleep(0)
    protocol.connection_lost(None)
    return [each.partition(">")[0] for each in transport.written.decode().split("<")[1:]]


def test_bodies_of_requests_with_offers_are_read_wherever_the_stream_is_cut() -> None:
    async def cut() -> list[list[str]]:
        return [await answers(STREAM[:end], STREAM[end:]) for end in range(1, len(STREAM))]

    assert all(found == WANTED for found in asyncio.run(cut()))


def test_a_request_that_offers_and_closes_is_the_last() -> None:
    closing = POST + OFFER.replace(b"Upgrade,", b"close, Upgrade,") + LENGTH
    assert asyncio.run(answers(closing + POST + LENGTH)) == WANTED[:1]
