"""The configuration of `bin/serve` and `bin/loadtest`."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxtempl.config.fields import DeviceName, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve a bundle: suggestions over HTTP, the advocate's console, and feedback events."""

    bundle: str = option("", "Folder of the bundle that bin/convert onnx or tensorrt wrote.")
    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 accepts connections from other machines.")
    port: int = option(8080, "Port to listen on; 0 takes a free one and prints it.", minimum=0)
    backend: Literal["onnx", "cuda", "tensorrt", "triton", "fake"] = option(
        "onnx",
        "Backend that computes the model: ONNX Runtime on the CPU (onnx) or on a GPU (cuda), a TensorRT engine, a "
        "Triton server, or invented logits (fake).",
    )
    threads: int = option(0, "Compute threads of --backend=onnx (default: all cores).", minimum=0)
    triton: str = option("localhost:8000", "HOST:PORT of the Triton server's HTTP service.")
    triton_model: str = option("templates", "Name of the Triton model, which must be made from this bundle.")
    fake_ms: float = option(0.0, "Milliseconds that --backend=fake takes for a row.", minimum=0)
    max_batch_size: int = option(4, "Maximum requests of one length that are computed at once.", minimum=1, was="batch")
    queue: int = option(64, "Maximum waiting requests; further ones are rejected immediately (429).", minimum=1)
    timeout_ms: int = option(1000, "Deadline of a response; a request past it is never computed.", minimum=1)
    max_body: int = option(1_048_576, "Maximum bytes of a request; larger ones are rejected (413).", minimum=1)
    store: str = option(
        "sqlite:///events.sqlite", "Database of suggestions and events: sqlite:///... or postgresql+psycopg://...."
    )
    tokens: str = option(
        "", "File of bearer tokens, one a line; a request must carry one of them (default: no token is needed)."
    )
    admin_tokens: str = option("", "File of bearer tokens for /admin/, which is closed without it.")
    root_path: str = option(
        "", "Prefix of this server's paths behind a proxy, as /templates; requests come with or without it."
    )
    experiments: str = option("", "File of experiments: a holdout, an A/B test between bundles, a shadow.")
    cases: str = option("", "Cases that /console replays, in JSON Lines (default: synthetic cases).")
    drain_seconds: int = option(30, "Maximum seconds to finish accepted requests after SIGTERM.", minimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeEventsExportConfig:
    """Export suggestions and their events to Parquet: one row an event; a suggestion without events has one row."""

    store: str = option("sqlite:///events.sqlite", "Database that bin/serve writes.")
    since: str = option("", "First day, as 2026-01-31 (default: the first recorded one).")
    until: str = option("", "Day after the last one, as 2026-02-28 (default: no limit).")
    out: Path = option(Path("events.parquet"), "File to write.")
    overwrite: bool = option(False, "Replace --out if it exists.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadtestConfig:
    """Send requests to a running server at given rates and report latencies in the form of the paper's Table 4."""

    url: str = option("http://127.0.0.1:8080", "URL of the server.")
    cases: str = option("", "File of cases, as bin/prepare reads them; contexts are sampled from it.")
    contexts: int = option(10_000, "Number of sampled contexts (default: the paper's).", minimum=1)
    rates: tuple[float, ...] = option((1.0, 2.0, 5.0, 10.0, 20.0), "Request rates to test in turn, per second.")
    minutes: float = option(5.0, "Minutes of each rate (default: the paper's).")
    warmup: float = option(10.0, "Seconds before each rate that are not measured.", minimum=0)
    arrivals: Literal["poisson", "constant", "bursty"] = option(
        "poisson", "Arrival process: poisson as in the paper's figures, constant, or bursty (Gamma gaps)."
    )
    burstiness: float = option(
        4.0, "Variance of the gaps of --arrivals=bursty, relative to a Poisson process.", minimum=0
    )
    timeout: float = option(10.0, "Seconds after which an unanswered request counts as an error.", minimum=0)
    budget_ms: float = option(100.0, "Latency budget in milliseconds (paper section 5: 100 ms).", minimum=0)
    seed: int = option(0, "Seed of contexts and arrivals.", minimum=0)
    token: str = option("", "File whose first line is the server's bearer token.")
    device: DeviceName = option("none", "Device of the server, for the roofline of the report.")
    flops: float = option(0.0, "FLOP/s of the server's device, instead of --device.", minimum=0)
    out: Path = option(Path("loadtest"), "Folder of the report.")
    overwrite: bool = option(False, "Replace --out if it is a load test.")
