"""An ASGI application on a real socket."""

import contextlib
import socket
import threading
from collections.abc import Generator

import uvicorn
from starlette.applications import Starlette


@contextlib.contextmanager
def serve_app(app: Starlette, port: int = 0) -> Generator[int]:
    """Serve an application in a thread; yield its port."""
    listener = socket.create_server(("127.0.0.1", port))  # with SO_REUSEADDR, so that a port can be reused
    config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
