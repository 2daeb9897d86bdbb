"""The server's process: its port, its event loop, and a shutdown that drains requests."""

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
from jaxtempl.serve.events import database
from jaxtempl.serve.experiments import definition
from jaxtempl.serve.http.app import App
from jaxtempl.serve.http.protocol import Protocol

SWITCH_INTERVAL = 0.0005  # seconds until a thread must release the interpreter lock; Python's default is 0.005
KEEP_ALIVE = 75  # seconds that an idle connection is kept: longer than clients and load balancers keep theirs
BACKLOG = 2048


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT, then answer the accepted requests and return.

    Raises:
        UsageError: No bundle is given, or --root_path is not a prefix of paths.
        UserError: The port is taken, or the bundle, the store, the tokens or the cases cannot be used.
    """
    if not config.bundle:
        raise UsageError("--bundle is missing; pass --bundle=DIR, a folder of bin/convert onnx")
    bundle.read_manifest(Path(config.bundle))  # fails early for a folder that is not a bundle
    for folder in definition.read(Path(config.experiments)).bundles if config.experiments else ():
        bundle.read_manifest(Path(folder))
    # Tokenizing a window takes less time than distributing it over cores, which the network needs.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.setswitchinterval(SWITCH_INTERVAL)
    with listen(config.host, config.port) as listener, logs.write_json_logs():
        _run(config, listener)


def listen(host: str, port: int) -> socket.socket:
    """Open a socket at the address; raise UserError if that fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{host}:{port} cannot be opened: {why}; pass another --port or --host") from None


def _run(config: ServeConfig, listener: socket.socket) -> None:
    failed: list[Exception] = []

    def ready(error: Exception | None) -> None:
        if error:
            failed.append(error)
            server.should_exit = True
        else:
            gc.collect()
            gc.freeze()  # a collection that visits the loaded model would delay requests
            _print_address(config, listener)

    options = uvicorn.Config(
        App(config, ready).asgi(),
        loop="uvloop",
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=config.drain_seconds,
    )
    server = uvicorn.Server(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn's own handlers raise the signal again after draining, which would not be a clean exit.
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
    if failed:
        raise failed[0]
    logs.log_event("stopped", logging.INFO)


def _print_address(config: ServeConfig, listener: socket.socket) -> None:
    """Print the address and the bundle, once the server is ready."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"{Path(config.bundle)} is served at {address} (console: {address}/console); Ctrl-C stops it", flush=True)


def format_config(config: ServeConfig) -> str:
    """Format the configuration as YAML, without the password in the store's URL."""
    lines = parsing.dump(config).replace(config.store, database.redact_url(config.store))
    return lines.rstrip("\n")
