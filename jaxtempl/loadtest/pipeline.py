"""Run a load test: draw the inputs, measure one rate after another, and write the folder of the report."""

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


def run(config: LoadtestConfig) -> dict[str, Any]:
    """Measure all rates, write the folder of the report atomically, and return the content of report.json.

    Raises:
        UserError: The server cannot be tested, the cases hold no context, or --out may not be written.
    """
    _check(config)
    files.check_target(config.out, config.overwrite, REPORT, KIND)
    token = _token(config.token)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(_measure(config, token))
    with files.atomic_folder(config.out, replace=config.overwrite) as folder:
        files.write_json(folder / REPORT, report)
        page.write_page(report, folder / PAGE)
    return report


def _check(config: LoadtestConfig) -> None:
    if not config.cases:
        raise UsageError("--cases is missing; pass --cases=FILE of cases, as bin/prepare reads them")
    if config.flops and config.device != "none":
        raise UsageError("--flops and --device are both given; pass only one of them")
    positive = {key: getattr(config, key) for key in ("minutes", "timeout", "budget_ms", "burstiness")}
    for key, values in {"rates": config.rates, **{key: (value,) for key, value in positive.items()}}.items():
        if not values or not all(0 < value < math.inf for value in values):
            raise UsageError(f"--{key}={','.join(map(str, values))} is not allowed; pass finite numbers above 0")
    if config.warmup == math.inf:
        raise UsageError("--warmup=inf is not allowed; pass a finite number of seconds")
    parts = urlsplit(config.url)
    if "@" in parts.netloc:  # the report shows the address
        raise UsageError("--url contains a user; leave it out, and pass a bearer token with --token=FILE")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise UsageError(f"--url={config.url!r} is not the address of a server; pass http://HOST:PORT")


def _token(file: str) -> str:
    if not file:
        return ""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path} does not exist; --token names a file whose first line is the bearer token")
    token = files.read_text(path).partition("\n")[0].strip()
    if not token or not token.isascii() or not token.isprintable():
        raise UserError(f"the first line of {path} is not a bearer token; write one in printable ASCII")
    return token


async def _measure(config: LoadtestConfig, token: str) -> dict[str, Any]:
    _allow_connections()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    async with client.open_session(config.timeout, token) as http:
        model = await client.fetch_model(http, config.url.rstrip("/"))
        inputs = requests.draw_contexts(config.cases, config.contexts, config.seed)
        gc.collect()
        gc.freeze()  # a collection that visits the inputs would delay sends
        by_rate = {rate: await _send_rate(http, config, inputs, rate) for rate in dict.fromkeys(config.rates)}
    seconds = 60 * config.minutes
    rows = [
        latencies.summarize_rate(rate, exchanges, config.warmup, seconds, config.budget_ms)
        for rate, exchanges in by_rate.items()
    ]
    tokens = Counter(e.tokens for exchanges in by_rate.values() for e in exchanges if e.outcome == ANSWERED)
    bound = minimum_latency(model, tokens, config.device, config.flops)
    return build_report(config, started, model, inputs, rows, bound)


def _allow_connections() -> None:
    """Raise the limit of open sockets to the system's maximum: each unanswered request holds one."""
    maximum = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


async def _send_rate(
    http: ClientSession, config: LoadtestConfig, inputs: RequestContexts, rate: float
) -> list[Exchange]:
    """Return all exchanges at one rate, after the last answer, so that the next rate starts with an empty queue."""
    rng = np.random.default_rng([config.seed, round(1e6 * rate)])  # independent of the other rates
    seconds = config.warmup + 60 * config.minutes
    due = arrivals.draw_times(config.arrivals, rate, seconds, config.burstiness, rng)
    chosen = requests.draw_order(len(inputs.messages), len(due), rng)
    bodies = requests.request_bodies(inputs, chosen, f"loadtest-{config.seed}-{rate:g}")
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(due), desc=f"{rate:g} requests/s", unit="request", disable=quiet, dynamic_ncols=True) as bar:
        return await client.send_all(http, config.url.rstrip("/"), due, bodies, bar.update)
