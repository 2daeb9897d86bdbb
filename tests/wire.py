"""Requests as bytes on a socket, and the paths of the server."""

import contextlib
import http.client
import socket
from collections.abc import Iterable

from serving import Answer, Server

from jaxtempl.serve.http import openapi

HEAD = b" HTTP/1.1\r\nHost: here\r\n"
CLOSE = b"Connection: close\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
PAGE = ("/console", "/console/console.css", "/console/console.js")
PATHS: dict[str, set[str]] = {
    **{path: {method.upper() for method in each} for path, each in openapi.document(guarded=False)["paths"].items()},
    **{path: {"GET"} for path in ("/openapi.json", *PAGE)},
}  # methods by path


def length(size: int) -> bytes:
    return b"Content-Length: %d\r\n" % size


def send(server: Server, raw: bytes, finish: bool = False) -> bytes:
    """Send bytes and return all answers until the server closes; `finish` closes the client's side first."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        try:
            connection.sendall(raw)
            if finish:
                connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except ConnectionError:  # the server closed before it had read everything
            return b""


def post(server: Server, path: str, body: bytes | Iterable[bytes]) -> Answer:
    """Send a request; an iterable body is sent in chunks.

    The connection stays open: the server may close it before a long body is read if the client requests a close.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", path, body)
        got = connection.getresponse()
        return Answer(got.status, dict(got.headers), got.read())


def statuses(answers: bytes) -> list[int]:
    """Return the status codes of all answers in order."""
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]
