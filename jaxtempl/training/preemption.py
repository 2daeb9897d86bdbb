"""SIGTERM: a training saves after the current step and exits with 75; a second SIGTERM ends it immediately."""

import os
import signal
import socket
import sys
import threading
from types import FrameType, TracebackType

from jaxtempl.errors import InterruptedEarly


class PreemptionHandler:
    """Handles SIGTERM inside its context: before `defer` it raises InterruptedEarly, afterwards it records the request.

    Attributes:
        requested: Whether a SIGTERM was received.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def defer(self) -> None:
        """Record a SIGTERM from now on instead of raising: there is a state to save."""
        self._deferred = True

    def __enter__(self) -> "PreemptionHandler":
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        self._wakeup, receiver = socket.socketpair()
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_exit_at_second, args=(receiver,), name="sigterm", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        signal.set_wakeup_fd(-1)
        self._wakeup.close()
        signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise InterruptedEarly("stopped before the first step; run the same command to start again")
        print("SIGTERM: saving after the current step; a second one ends at once", file=sys.stderr, flush=True)


NEVER_PREEMPTED = PreemptionHandler()  # for callers that handle no signals


def _exit_at_second(receiver: socket.socket) -> None:
    """Exit at the second SIGTERM, from a thread: Python's handlers run only once the main thread returns from C."""
    with receiver:
        count = 0
        while count < 2:
            received = receiver.recv(1)
            if not received:
                return
            count += received[0] == signal.SIGTERM
    os._exit(128 + signal.SIGTERM)
