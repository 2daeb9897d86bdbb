"""The process: a port, the event loop, and an end that drains."""

import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from jaxtempl.bundle import bundle
from jaxtempl.config import parsing
from jaxtempl.config.serving import ServeConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.serve import logs
from jaxtempl.serve.events import tables
from jaxtempl.serve.http.app import App

SWITCH = 0.0005  # seconds after which a thread that holds the interpreter is asked for it; Python's own are 0.005
KEEP_ALIVE = 75  # seconds that an idle connection is kept: longer than clients and balancers keep theirs
BACKLOG = 2048


def serve(asked: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT, then answers what is in hand and ends.

    Raises:
        UsageError: no bundle is named.
        UserError: the port is taken, or the bundle, the store, the tokens or the cases cannot be used.
    """
    if not asked.bundle:
        raise UsageError("what is to be served? pass --bundle=DIR, as bin/convert onnx made it")
    bundle.read_manifest(Path(asked.bundle))  # so that nothing is begun for a folder that is none
    # A window is tokenized in less time than it takes to hand parts of it to other cores, which the network may have.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.setswitchinterval(SWITCH)
    with listen(asked.host, asked.port) as listener, logs.write_json_logs():
        _run(asked, listener)


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address; raises UserError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{host}:{port} cannot be listened on: {why}; pass another --port or --host") from None


def _run(asked: ServeConfig, listener: socket.socket) -> None:
    failed: list[Exception] = []

    def ready(error: Exception | None) -> None:
        if error:
            failed.append(error)
            server.should_exit = True
        else:
            gc.collect()
            gc.freeze()  # what is there stays, and a collection that visits it all would hold up requests
            _tell(asked, listener)

    settings = uvicorn.Config(
        App(asked, ready).asgi(),
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=asked.drain_seconds,
    )
    server = uvicorn.Server(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn drains by handlers of its own, and in the end raises the signal again: that would be no clean exit.
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
    if failed:
        raise failed[0]
    logs.log_event("stopped", logging.INFO)


def _tell(asked: ServeConfig, listener: socket.socket) -> None:
    """Where it is and what it is, once it is ready."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"{Path(asked.bundle)} is served at {address} (console: {address}/console); Ctrl-C ends it", flush=True)


def format_config(asked: ServeConfig) -> str:
    """The settings as YAML; the store's without its password."""
    lines = parsing.dump(asked).replace(asked.store, tables.redact_url(asked.store))
    return lines.rstrip("\n")
