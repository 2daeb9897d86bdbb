"""Wrap every request: its id, its token, the limit of its body, one log line, and errors as JSON.

Of the request, an error contains nothing except the name of a field.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from jaxtempl.errors import UserError
from jaxtempl.serve import logs
from jaxtempl.serve.batcher import FailedError, FullError, LateError, RefusedError, SupersededError
from jaxtempl.serve.events.store import StoreUnavailableError, UnknownSuggestionError
from jaxtempl.serve.http.auth import Tokens
from jaxtempl.serve.http.channel import LINGER_SECONDS, Channel
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
    ClientDisconnect: 499,  # no client reads it; for the log and the metrics
}
QUIET = {"livez", "readyz", "metrics"}  # polled every few seconds; logged only when they fail
RETRY_SECONDS = 1
PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}  # of every JSON answer


class Boundary:
    """Add request ids, tokens, errors, the log and metrics to an application.

    Args:
        app: The application.
        metrics: Metrics to update.
        guards: Accepted tokens by prefix of the paths that require one; None accepts no token.
        root_path: Prefix of a proxy that a path may start with; the application sees the path without it.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, guards: Mapping[str, Tokens | None], root_path: str = ""
    ) -> None:
        self._app, self._metrics, self._guards, self._root_path = app, metrics, guards, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        scope["app"] = self  # otherwise the router answers unknown paths itself
        if scope["path"].startswith(f"{self._root_path}/"):
            scope["path"] = scope["path"].removeprefix(self._root_path)
        started, channel, linger = time.perf_counter(), Channel(scope, receive, send), LINGER_SECONDS
        try:
            self._admit(scope["path"], [value for name, value in scope["headers"] if name == b"authorization"])
            await self._app(scope, channel.receive, channel.send)
        except (Exception, asyncio.CancelledError) as error:  # the outermost handler: a client gets JSON for any error
            if channel.status:
                raise
            await error_response(error, channel.request_id)(scope, channel.receive, channel.send)
            linger = 0 if isinstance(error, asyncio.CancelledError) else linger  # a server that stops waits for nothing
        self._record(scope, channel.status, time.perf_counter() - started, channel.request_id)
        await channel.finish(linger)

    def _admit(self, path: str, authorizations: Sequence[bytes]) -> None:
        for prefix, tokens in self._guards.items():
            if path.startswith(prefix):
                if tokens is None:
                    raise HTTPException(403, "disabled: the server was started without --admin_tokens")
                if len(authorizations) != 1 or not tokens.admits(authorizations[0]):
                    raise HTTPException(401, "a bearer token is required", {"WWW-Authenticate": "Bearer"})

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        """Update metrics and log; the route's name stands for the path, which may contain anything."""
        route = getattr(scope.get("endpoint"), "__name__", "none")
        self._metrics.answers.labels(route, str(status)).inc()
        if route not in QUIET or status >= 400:
            milliseconds = round(1000 * seconds, 3)
            logs.log_event("answered", route=route, status=status, milliseconds=milliseconds, request_id=request_id)


def error_response(error: Exception | asyncio.CancelledError, request_id: str) -> Response:
    """Return an error as an answer; an unexpected one is logged, and its message is not sent."""
    if isinstance(error, asyncio.CancelledError):  # the server stops before the answer is computed
        error = HTTPException(503, "the server is stopping; ask another one", {"Retry-After": str(RETRY_SECONDS)})
    if isinstance(error, HTTPException):
        return json_response(ErrorAnswer(error.detail, None, request_id), error.status_code, error.headers)
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    if status == 500 and not isinstance(error, RefusedError):
        logs.log_event("unexpected error", logging.ERROR, error, request_id=request_id)
        return json_response(ErrorAnswer("internal error; see the server's log", None, request_id), 500)
    field = error.field or None if isinstance(error, FieldError) else None
    after = error.after if isinstance(error, FullError) else RETRY_SECONDS
    headers = {"Retry-After": str(after)} if status in (429, 503) else None
    return json_response(ErrorAnswer(str(error) or "the client disconnected", field, request_id), status, headers)


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None, background: BackgroundTask | None = None
) -> Response:
    """Return a value as JSON; `background` runs after it was sent."""
    return Response(msgspec.json.encode(value), status, {**PRIVATE, **(headers or {})}, "application/json", background)


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """Read a request's whole body.

    Raises:
        HTTPException: 413 as soon as the body exceeds `limit` bytes; 408 if it takes too long; 415 if it is compressed.
    """
    encodings = ",".join(request.headers.getlist("content-encoding") or ["identity"])
    if any(encoding.strip().lower() != "identity" for encoding in encodings.split(",")):
        raise HTTPException(415, "the body is compressed; send it uncompressed")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise HTTPException(413, f"the body has more than {limit:,} bytes")
    chunks, size = list[bytes](), 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise HTTPException(413, f"the body has more than {limit:,} bytes")
    except TimeoutError:
        raise HTTPException(408, "the body did not arrive in time") from None
    return b"".join(chunks)


async def run_until_disconnect(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Return the result of `work`, or cancel it when the client disconnects first.

    Raises:
        ClientDisconnect: The client disconnected.
    """
    task, disconnected = asyncio.current_task(), False

    def stop(watching: "asyncio.Task[None]") -> None:
        nonlocal disconnected
        if task and not watching.cancelled():
            disconnected = task.cancel()

    watcher = asyncio.ensure_future(_wait_for_disconnect(request))
    watcher.add_done_callback(stop)
    try:
        return await work
    except asyncio.CancelledError:
        if not disconnected or task is None:
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        watcher.remove_done_callback(stop)
        watcher.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    """Return when the client disconnects; the body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
