"""The generator: sends each request when it is due, and times its answer from then on.

A client that times from when it really sent, or waits for an answer before it sends on, leaves out what a stalled
server makes others wait (coordinated omission; Tene, 2015, "How NOT to Measure Latency").
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
REFUSALS: Mapping[int, str] = {  # answers that are neither suggestions nor errors, by status
    HTTPStatus.TOO_MANY_REQUESTS: SHED,
    HTTPStatus.GATEWAY_TIMEOUT: LATE,
    HTTPStatus.CONFLICT: SUPERSEDED,
}

KEEPALIVE = 4.0  # seconds; below uvicorn's 5, or a request would now and then meet a connection that is being closed
AWAKE = 0.001  # seconds before a request is due from which the clock is watched, for timers wake up to that late

_ANSWER, _MODEL = msgspec.json.Decoder(SuggestAnswer), msgspec.json.Decoder(ModelAnswer)


class Exchange(NamedTuple):
    """One request and what came of it.

    Attributes:
        due: seconds from the start at which it was to be sent.
        lag: seconds by which it was sent later.
        latency: seconds from when it was due to the end of the answer, or to the failure.
        outcome: one of ANSWERED, SHED, LATE and SUPERSEDED, or the kind of error.
        tokens: of the window, as the answer has it; 0 without one.
    """

    due: float
    lag: float
    latency: float
    outcome: str
    tokens: int


def open_session(timeout: float, token: str) -> aiohttp.ClientSession:
    """As many connections as there are requests at a time, kept open.

    Args:
        timeout: seconds for a whole answer.
        token: a bearer token, or empty.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE),
        timeout=aiohttp.ClientTimeout(total=timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def fetch_model(http: aiohttp.ClientSession, url: str) -> ModelAnswer:
    """What serves there.

    Raises:
        UserError: nothing is reached, it is not ready, wants a token, or is no server of suggestions.
    """
    try:
        for path in ("/readyz", "/v1/model"):
            async with http.get(f"{url}{path}", allow_redirects=False) as response:
                _must_be_ok(response.status, url, path)
                said = await response.read()
        return _MODEL.decode(said)
    except TimeoutError:
        raise UserError(f"{url} does not answer in time; is the server well? --timeout waits longer") from None
    except (aiohttp.ClientError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{url} cannot be reached ({reason}); start bin/serve, or name its address with --url"
        ) from None
    except msgspec.MsgspecError:
        raise UserError(f"{url}/v1/model is not what bin/serve answers; name the address of one with --url") from None


def _must_be_ok(status: int, url: str, path: str) -> None:
    if status == HTTPStatus.UNAUTHORIZED:
        raise UserError(f"{url} wants a bearer token that it knows (401); pass --token=FILE with one in its first line")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        raise UserError(f"{url} is not ready (503); wait until {url}/readyz answers 200")
    if status != HTTPStatus.OK:
        raise UserError(f"{url}{path} answers {status}, not 200; is it a server of bin/serve? --url names another")


async def send_all(
    http: aiohttp.ClientSession, url: str, due: Times, bodies: Iterable[bytes], told: Callable[[], object]
) -> list[Exchange]:
    """Sends each request when it is due, and waits for what is still unanswered at the end.

    Args:
        http: from `session`.
        url: of the server.
        due: seconds from now at which each is to be sent.
        bodies: of the requests.
        told: called after each.
    """
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[Exchange]] = []
        for at, body in zip(due.tolist(), bodies, strict=True):
            await _until(start + at)
            tasks.append(group.create_task(_exchange(http, f"{url}/v1/suggest", body, start, at, told)))
    return [task.result() for task in tasks]


async def _until(when: float) -> None:
    """Returns at `when`, or at once where that has passed; others run in the meantime."""
    await asyncio.sleep(max(when - time.perf_counter() - AWAKE, 0))
    while time.perf_counter() < when:
        await asyncio.sleep(0)


async def _exchange(
    http: aiohttp.ClientSession, url: str, body: bytes, start: float, due: float, told: Callable[[], object]
) -> Exchange:
    sent = time.perf_counter() - start
    outcome, tokens = await _asked(http, url, body)
    done = time.perf_counter() - start
    told()
    return Exchange(due, sent - due, done - due, outcome, tokens)


async def _asked(http: aiohttp.ClientSession, url: str, body: bytes) -> tuple[str, int]:
    """The outcome, and the window's tokens."""
    try:
        async with http.post(url, data=body, allow_redirects=False) as response:
            said = await response.read()
    except TimeoutError:
        return "timeout", 0
    except aiohttp.ClientConnectorError:
        return "no connection", 0
    except (aiohttp.ClientError, OSError):
        return "connection broken", 0
    if response.status != HTTPStatus.OK:
        return REFUSALS.get(response.status, f"status {response.status}"), 0
    return _read(said)


def _read(said: bytes) -> tuple[str, int]:
    try:
        answer = _ANSWER.decode(said)
    except msgspec.MsgspecError:
        return "not an answer", 0
    return (ANSWERED, answer.tokens) if answer.suggestions or answer.no_suggestion else ("empty answer", 0)
