"""The server's process: its port, its event loop, and a shutdown that drains requests."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

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


class DrainingServer(uvicorn.Server):
    """uvicorn's server, whose shutdown always closes the store and answers every request.

    The first signal drains: accepted requests are answered, for at most `timeout_graceful_shutdown` seconds. A second
    SIGINT, or the end of that time, answers the remaining ones with 503.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain, or on a second SIGINT stop waiting; uvicorn would skip the application's shutdown."""
        if self.should_exit and sig == signal.SIGINT:
            loop = asyncio.get_running_loop()
            for task in self.server_state.tasks:
                loop.call_soon_threadsafe(task.cancel)
        self.should_exit = True


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then answer the accepted requests and return.

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
    server = DrainingServer(options)
    signal.signal(signal.SIGHUP, server.handle_exit)  # uvicorn handles SIGTERM and SIGINT
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # log rotation sends it; standard error needs no reopening
    logging.getLogger("uvicorn.error").addFilter(_lower_level)
    server.run(sockets=[listener])
    if failed:
        raise failed[0]
    logs.log_event("stopped", logging.INFO)


def _lower_level(record: logging.LogRecord) -> bool:
    """Log the end of draining as a warning: the requests are answered."""
    if str(record.msg).startswith("Cancel "):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def _print_address(config: ServeConfig, listener: socket.socket) -> None:
    """Print the address and the bundle, once the server is ready."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"{Path(config.bundle)} is served at {address} (console: {address}/console); Ctrl-C stops it", flush=True)


def format_config(config: ServeConfig) -> str:
    """Format the configuration as YAML, without the password in the store's URL."""
    lines = parsing.dump(config).replace(config.store, database.redact_url(config.store))
    return lines.rstrip("\n")
