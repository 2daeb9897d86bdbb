"""The settings of `bin/serve` and `bin/loadtest`."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxtempl.config.fields import DeviceName, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A bundle -> suggestions over HTTP, the advocate's console, and what became of the suggestions."""

    bundle: str = option("", "folder of the bundle; bin/convert onnx or tensorrt makes one")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 is all of this machine")
    port: int = option(8080, "to listen on; 0 takes a free one, which is printed", least=0)
    backend: Literal["onnx", "cuda", "tensorrt", "triton", "fake"] = option(
        "onnx", "what runs the network: ONNX Runtime (cuda: on a GPU), its engine, a Triton server, or nothing (fake)"
    )
    threads: int = option(0, "of onnx: threads that compute (default: all cores)", least=0)
    triton: str = option("localhost:8000", "of triton: HOST:PORT of its HTTP service")
    triton_model: str = option("templates", "of triton: name of the model, which must be of this bundle")
    fake_ms: float = option(0.0, "of fake: milliseconds that a row takes; its logits are made up", least=0)
    max_batch_size: int = option(4, "most requests of one length that are computed at once", least=1, was="batch")
    queue: int = option(64, "most requests that wait; those beyond are answered 429 at once", least=1)
    timeout_ms: int = option(1000, "longest time to an answer; a request that is older is never computed", least=1)
    max_body: int = option(1_048_576, "bytes of a request above which it is answered 413", least=1)
    store: str = option("sqlite:///events.sqlite", "database of suggestions and events; postgresql+psycopg://...")
    tokens: str = option("", "file of bearer tokens, one a line, of which a request must carry one (default: none)")
    admin_tokens: str = option("", "file of the tokens of /admin/, which is closed without")
    cases: str = option("", "cases that /console replays, a file of JSON Lines (default: made-up ones)")
    drain_seconds: int = option(30, "after SIGTERM, longest wait for the requests in hand", least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeEventsExportConfig:
    """Suggestions and what became of them -> Parquet, a row an event; a suggestion without any has one row."""

    store: str = option("sqlite:///events.sqlite", "database that bin/serve writes; postgresql+psycopg://...")
    since: str = option("", "first day, as 2026-01-31 (default: all)")
    until: str = option("", "the day after the last, likewise")
    out: Path = option(Path("events.parquet"), "file to write")
    overwrite: bool = option(False, "replace --out when it exists")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadtestConfig:
    """Requests at given rates to a running server -> latencies in the form of the paper's Table 4."""

    url: str = option("http://127.0.0.1:8080", "of the server")
    cases: str = option("", "file of cases, as bin/prepare reads them; contexts are drawn from it")
    contexts: int = option(10_000, "contexts drawn from the cases (the paper's number)", least=1)
    rates: tuple[float, ...] = option((1.0, 2.0, 5.0, 10.0, 20.0), "requests a second, one after another")
    minutes: float = option(5.0, "of each rate; the paper's number")
    warmup: float = option(10.0, "seconds before each rate that are not counted", least=0)
    arrivals: Literal["poisson", "constant", "bursty"] = option(
        "poisson", "when requests are sent: Poisson as the paper's figures suggest, evenly, or in bursts (Gamma)"
    )
    burstiness: float = option(4.0, "of bursty: variance of the gaps, a Poisson process having 1", least=0)
    timeout: float = option(10.0, "seconds after which an unanswered request counts as an error", least=0)
    budget_ms: float = option(100.0, "what an answer may take (paper section 5: 100 ms)", least=0)
    seed: int = option(0, "of contexts and arrivals", least=0)
    token: str = option("", "file whose first line is the server's bearer token")
    device: DeviceName = option("none", "that the server computes on, for the least time that it can take")
    flops: float = option(0.0, "in place of --device: operations a second that it does", least=0)
    out: Path = option(Path("loadtest"), "folder of the report")
    overwrite: bool = option(False, "replace --out when it is a load test")
