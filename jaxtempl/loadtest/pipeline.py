"""From flags to a folder with the report: the server, the inputs, and one rate after another."""

import asyncio
import gc
import math
import resource
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvloop
from aiohttp import ClientSession
from tqdm import tqdm

from jaxtempl import files
from jaxtempl.config.serving import LoadtestConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.loadtest import arrivals, client, latencies, page, requests
from jaxtempl.loadtest.client import ANSWERED, Exchange
from jaxtempl.loadtest.report import KIND, build_report
from jaxtempl.loadtest.requests import RequestContexts
from jaxtempl.loadtest.roofline import minimum_latency

REPORT, PAGE = "report.json", "index.html"


def run(asked: LoadtestConfig) -> dict[str, Any]:
    """Tries all rates, writes the folder of the report whole or not at all, and returns what report.json says.

    Raises:
        UserError: the server cannot be tested, there is nothing to ask about, or --out may not be written.
    """
    _check(asked)
    files.check_target(asked.out, asked.overwrite, REPORT, KIND)
    token = _token(asked.token)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(_measured(asked, token))
    with files.atomic_folder(asked.out, replace=asked.overwrite) as folder:
        files.write_json(folder / REPORT, found)
        page.write_page(found, folder / PAGE)
    return found


def _check(asked: LoadtestConfig) -> None:
    if not asked.cases:
        raise UsageError("what is to be asked about? pass --cases=FILE of cases, as bin/prepare reads them")
    if asked.flops and asked.device != "none":
        raise UsageError("--flops and --device are both given; give one, the server computes on one device")
    above = {key: getattr(asked, key) for key in ("minutes", "timeout", "budget_ms", "burstiness")}
    for key, values in {"rates": asked.rates, **{key: (value,) for key, value in above.items()}}.items():
        if not values or not all(0 < value < math.inf for value in values):
            raise UsageError(f"--{key}={','.join(map(str, values))} is not allowed; more than 0 is")
    if asked.warmup == math.inf:
        raise UsageError("--warmup=inf is endless; a number of seconds is allowed")
    parts = urlsplit(asked.url)
    if "@" in parts.netloc:  # the report names the address
        raise UsageError("--url has a user in it; leave that out, and pass a bearer token with --token=FILE")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise UsageError(f"--url={asked.url!r} is no address of a server; http://HOST:PORT is allowed")


def _token(file: str) -> str:
    if not file:
        return ""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path} does not exist; --token names a file whose first line is the bearer token")
    token = path.read_text(encoding="utf-8").partition("\n")[0].strip()
    if not token or not token.isascii() or not token.isprintable():
        raise UserError(f"the first line of {path} is no bearer token; one is printable ASCII")
    return token


async def _measured(asked: LoadtestConfig, token: str) -> dict[str, Any]:
    _allow_connections()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    async with client.open_session(asked.timeout, token) as http:
        model = await client.fetch_model(http, asked.url.rstrip("/"))
        inputs = requests.draw(asked.cases, asked.contexts, asked.seed)
        gc.collect()
        gc.freeze()  # what is there stays, and a collection that visits it all would make sends late
        tried = {rate: await _tried(http, asked, inputs, rate) for rate in dict.fromkeys(asked.rates)}
    rows = [
        latencies.summarize_rate(rate, made, asked.warmup, 60 * asked.minutes, asked.budget_ms)
        for rate, made in tried.items()
    ]
    answered = Counter(e.tokens for made in tried.values() for e in made if e.outcome == ANSWERED)
    return build_report(
        asked, started, model, inputs, rows, minimum_latency(model, answered, asked.device, asked.flops)
    )


def _allow_connections() -> None:
    """As many open sockets as the system lets this process have: each unanswered request holds one."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _tried(http: ClientSession, asked: LoadtestConfig, inputs: RequestContexts, rate: float) -> list[Exchange]:
    """All exchanges at one rate; over when the last request is answered, so that the next finds no queue."""
    rng = np.random.default_rng([asked.seed, round(1e6 * rate)])  # a rate is the same beside whatever other rates
    seconds = asked.warmup + 60 * asked.minutes
    due = arrivals.draw_times(asked.arrivals, rate, seconds, asked.burstiness, rng)
    chosen = requests.order(len(inputs.messages), len(due), rng)
    bodies = requests.bodies(inputs, chosen, f"loadtest-{asked.seed}-{rate:g}")
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(due), desc=f"{rate:g} requests/s", unit="request", disable=quiet, dynamic_ncols=True) as bar:
        return await client.send_all(http, asked.url.rstrip("/"), due, bodies, bar.update)
