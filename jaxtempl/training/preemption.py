"""SIGTERM: a training saves after the step in hand and ends with 75; a second one ends it at once."""

import os
import signal
import socket
import sys
import threading
from types import FrameType, TracebackType

from jaxtempl.errors import InterruptedEarly


class PreemptionHandler:
    """Hears SIGTERM while it is entered: before `defer` it raises InterruptedEarly, from then on it notes the wish.

    Attributes:
        requested: whether one has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def defer(self) -> None:
        """From here on there is something to save."""
        self._deferred = True

    def __enter__(self) -> "PreemptionHandler":
        self._before = signal.signal(signal.SIGTERM, self._hear)
        self._told, heard = socket.socketpair()
        self._told.setblocking(False)
        signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_count, args=(heard,), name="sigterm", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        signal.set_wakeup_fd(-1)
        self._told.close()
        signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise InterruptedEarly("stopped before the first step, as asked; the same command starts again")
        print("SIGTERM: saving after the step in hand; a second one ends at once", file=sys.stderr, flush=True)


NEVER_PREEMPTED = PreemptionHandler()  # for callers that hear no signals


def _count(heard: socket.socket) -> None:
    """Ends the process at the second SIGTERM, whatever its main thread waits for: Python's handlers wait for that."""
    with heard:
        come = 0
        while come < 2:
            said = heard.recv(1)
            if not said:
                return
            come += said[0] == signal.SIGTERM
    os._exit(128 + signal.SIGTERM)
