"""What every request goes through: its id, its token, its body's limit, one line of log, and errors as JSON.

No error says anything of what was sent but the name of a field.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxtempl.errors import UserError
from jaxtempl.serve import logs
from jaxtempl.serve.batcher import FailedError, FullError, LateError, RefusedError, SupersededError
from jaxtempl.serve.events.store import StoreUnavailableError, UnknownSuggestionError
from jaxtempl.serve.http.auth import Tokens
from jaxtempl.serve.metrics import Metrics
from jaxtempl.serve.schema import ErrorAnswer, FieldError
from jaxtempl.serve.service import BusyError, NotReadyError

ResultT = TypeVar("ResultT")
STATUS: Mapping[type[Exception], int] = {
    FieldError: 422,
    SupersededError: 409,
    BusyError: 409,
    UserError: 422,
    FullError: 429,
    FailedError: 500,
    NotReadyError: 503,
    LateError: 504,
    UnknownSuggestionError: 404,
    StoreUnavailableError: 503,
    ClientDisconnect: 499,  # nobody reads it; the log and the counts have it
}
QUIET = {"livez", "readyz", "metrics"}  # asked every few seconds by machines; logged only when they fail
RETRY_SECONDS = 1


class Boundary:
    """Around the application: ids, tokens, errors, the log and its counts.

    Args:
        app: what answers.
        metrics: to count in.
        guards: tokens by the beginning of the paths that want one.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, guards: Mapping[str, Tokens | None]) -> None:
        self._app, self._metrics, self._guards = app, metrics, guards

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        scope["app"] = self  # or the router would answer what it does not know by itself
        began, headers = time.perf_counter(), dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id", b"").decode("latin-1"))
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._admit(scope["path"], [value for name, value in scope["headers"] if name == b"authorization"])
            await self._app(scope, receive, told)
        except Exception as error:  # the last place: a client gets JSON, whatever it is
            if status:
                raise
            await error_response(error, request_id)(scope, receive, told)
        self._tell(scope, status, time.perf_counter() - began, request_id)

    def _admit(self, path: str, authorizations: Sequence[bytes]) -> None:
        for beginning, tokens in self._guards.items():
            if path.startswith(beginning):
                if tokens is None:
                    raise HTTPException(403, "closed: the server was started without --admin_tokens")
                if len(authorizations) != 1 or not tokens.admits(authorizations[0]):
                    raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})

    def _tell(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        """Counts and logs; a path is told by the name of what answers it, as others may hold anything."""
        route = getattr(scope.get("endpoint"), "__name__", "none")
        self._metrics.answers.labels(route, str(status)).inc()
        if route not in QUIET or status >= 400:
            milliseconds = round(1000 * seconds, 3)
            logs.log_event("answered", route=route, status=status, milliseconds=milliseconds, request_id=request_id)


def _request_id(given: str) -> str:
    """The client's, where it is a plain short name, or a new one."""
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else secrets.token_hex(16)


def error_response(error: Exception, request_id: str) -> Response:
    """An error as an answer; one that nobody expected is logged, and its words stay here."""
    if isinstance(error, HTTPException):
        return json_response(ErrorAnswer(error.detail, None, request_id), error.status_code, error.headers)
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    if status == 500 and not isinstance(error, RefusedError):
        logs.log_event("unexpected error", logging.ERROR, error, request_id=request_id)
        return json_response(ErrorAnswer("an error of the server's own; its log has more", None, request_id), 500)
    field = error.field or None if isinstance(error, FieldError) else None
    after = error.after if isinstance(error, FullError) else RETRY_SECONDS
    headers = {"Retry-After": str(after)} if status in (429, 503) else None
    return json_response(ErrorAnswer(str(error) or "the client has gone", field, request_id), status, headers)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """All of a request's body.

    Raises:
        HTTPException: 413 for more than `most` bytes, as soon as that is known; 408 when it takes too long; 415 when it
            is compressed.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "the body is compressed; only plain ones are read")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most:
        raise HTTPException(413, f"the body has more than {most:,} bytes")
    pieces, size = list[bytes](), 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                pieces.append(piece)
                size += len(piece)
                if size > most:
                    raise HTTPException(413, f"the body has more than {most:,} bytes")
    except TimeoutError:
        # Closed, or the rest could keep the connection for as long as the client likes.
        raise HTTPException(408, "the body did not come in time", {"Connection": "close"}) from None
    return b"".join(pieces)


async def run_until_disconnect(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """What `work` comes to; it is cancelled when the client goes before.

    Raises:
        ClientDisconnect: the client has gone.
    """
    working, left = asyncio.current_task(), False

    def stop(watching: "asyncio.Task[None]") -> None:
        nonlocal left
        if working and not watching.cancelled():
            left = working.cancel()

    gone = asyncio.ensure_future(_gone(request))
    gone.add_done_callback(stop)
    try:
        return await work
    except asyncio.CancelledError:
        if not left or working is None:
            raise
        working.uncancel()
        raise ClientDisconnect from None
    finally:
        gone.remove_done_callback(stop)
        gone.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has gone; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
