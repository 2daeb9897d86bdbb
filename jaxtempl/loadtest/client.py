"""Load generator: sends each request when it is due, and measures its latency from that time.

A client that measures from the actual send, or that waits for an answer before the next send, omits the time that a
stalled server makes other requests wait (coordinated omission; Tene, 2015, "How NOT to Measure Latency").
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import NamedTuple

import aiohttp
import msgspec

from jaxtempl.errors import UserError
from jaxtempl.loadtest.arrivals import Times
from jaxtempl.serve.schema import ModelAnswer, SuggestAnswer

ANSWERED, SHED, LATE, SUPERSEDED = "answered", "shed", "late", "superseded"
REFUSALS: Mapping[int, str] = {  # statuses that are neither suggestions nor errors
    HTTPStatus.TOO_MANY_REQUESTS: SHED,
    HTTPStatus.GATEWAY_TIMEOUT: LATE,
    HTTPStatus.CONFLICT: SUPERSEDED,
}

KEEPALIVE = 4.0  # seconds; below uvicorn's 5, or some requests would meet a connection that is being closed
SPIN = 0.001  # seconds before a request is due in which the clock is polled, as timers fire up to that late

_SUGGEST_DECODER, _MODEL_DECODER = msgspec.json.Decoder(SuggestAnswer), msgspec.json.Decoder(ModelAnswer)


class Exchange(NamedTuple):
    """One request and its outcome.

    Attributes:
        due: Planned time of the send, in seconds from the start.
        lag: Delay of the actual send, in seconds.
        latency: Seconds from `due` to the end of the answer, or to the failure.
        outcome: ANSWERED, SHED, LATE, SUPERSEDED, or the kind of error.
        tokens: Tokens of the window, as stated in the answer; 0 without one.
    """

    due: float
    lag: float
    latency: float
    outcome: str
    tokens: int


def open_session(timeout: float, token: str) -> aiohttp.ClientSession:
    """Open a session with one kept-alive connection for each concurrent request.

    Args:
        timeout: Limit of a whole answer, in seconds.
        token: Bearer token, or empty.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE),
        timeout=aiohttp.ClientTimeout(total=timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def fetch_model(http: aiohttp.ClientSession, url: str) -> ModelAnswer:
    """Fetch the description of the model that serves at `url`.

    Raises:
        UserError: The server is unreachable, not ready, rejects the token, or is not a suggestion server.
    """
    try:
        for path in ("/readyz", "/v1/model"):
            async with http.get(f"{url}{path}", allow_redirects=False) as response:
                _check_status(response.status, url, path)
                body = await response.read()
        return _MODEL_DECODER.decode(body)
    except TimeoutError:
        raise UserError(f"{url} does not answer in time; check the server, or pass a longer --timeout") from None
    except (aiohttp.ClientError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{url} cannot be reached ({reason}); start bin/serve, or pass its address as --url") from None
    except msgspec.MsgspecError:
        raise UserError(f"{url}/v1/model is not an answer of bin/serve; pass the address of one as --url") from None


def _check_status(status: int, url: str, path: str) -> None:
    if status == HTTPStatus.UNAUTHORIZED:
        raise UserError(f"{url} requires a valid bearer token (401); pass --token=FILE with one in its first line")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        raise UserError(f"{url} is not ready (503); wait until {url}/readyz answers 200")
    if status != HTTPStatus.OK:
        raise UserError(f"{url}{path} answers {status}, not 200; pass the address of bin/serve as --url")


async def send_all(
    http: aiohttp.ClientSession, url: str, due: Times, bodies: Iterable[bytes], on_done: Callable[[], object]
) -> list[Exchange]:
    """Send each request when it is due, and wait for all answers.

    Args:
        http: Session from `open_session`.
        url: Address of the server.
        due: Send times, in seconds from now.
        bodies: Bodies of the requests.
        on_done: Callback after each answer.
    """
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[Exchange]] = []
        for at, body in zip(due.tolist(), bodies, strict=True):
            await _sleep_until(start + at)
            tasks.append(group.create_task(_exchange(http, f"{url}/v1/suggest", body, start, at, on_done)))
    return [task.result() for task in tasks]


async def _sleep_until(when: float) -> None:
    """Return at `when`, or immediately if it has passed; other tasks run in the meantime."""
    await asyncio.sleep(max(when - time.perf_counter() - SPIN, 0))
    while time.perf_counter() < when:
        await asyncio.sleep(0)


async def _exchange(
    http: aiohttp.ClientSession, url: str, body: bytes, start: float, due: float, on_done: Callable[[], object]
) -> Exchange:
    sent = time.perf_counter() - start
    outcome, tokens = await _post(http, url, body)
    done = time.perf_counter() - start
    on_done()
    return Exchange(due, sent - due, done - due, outcome, tokens)


async def _post(http: aiohttp.ClientSession, url: str, body: bytes) -> tuple[str, int]:
    """Send one request; return its outcome and the window's tokens."""
    try:
        async with http.post(url, data=body, allow_redirects=False) as response:
            answer = await response.read()
    except TimeoutError:
        return "timeout", 0
    except aiohttp.ClientConnectorError:
        return "no connection", 0
    except (aiohttp.ClientError, OSError):
        return "connection broken", 0
    if response.status != HTTPStatus.OK:
        return REFUSALS.get(response.status, f"status {response.status}"), 0
    return _classify(answer)


def _classify(body: bytes) -> tuple[str, int]:
    try:
        answer = _SUGGEST_DECODER.decode(body)
    except msgspec.MsgspecError:
        return "not an answer", 0
    return (ANSWERED, answer.tokens) if answer.suggestions or answer.no_suggestion else ("empty answer", 0)
