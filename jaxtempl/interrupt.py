"""SIGTERM: the first is a wish to stop after the step in hand, the second ends at once."""

import signal
from types import FrameType, TracebackType

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


class Interrupted(Exception):  # noqa: N818 - no error: all is saved
    """A training stopped as it was asked to; its message says where it goes on."""


class Terminator:
    """Hears SIGTERM while it is entered.

    Attributes:
        asked: whether one has come.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Terminator":
        self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
