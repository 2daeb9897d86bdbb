"""Write the metrics of a training as events for TensorBoard."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]


class TensorBoardLogger:
    """Writes events for `tensorboard --logdir` of the run's folder or its parent.

    Events are written synchronously: tensorboardX's own writer uses a thread and waits forever if that dies.
    """

    def __init__(self, folder: Path, start: int) -> None:
        (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "tensorboard" / "events"))
        restart = Event(step=start + 1, session_log=SessionLog(status=SessionLog.START))  # hides later events
        self._writer.write_event(restart)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each name."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.write_event(Event(step=step, wall_time=time.time(), summary=Summary(value=scalars)))
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """Close the event file."""
        self._writer.close()
