"""TensorBoard's event files."""

from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from services.trainer.progress import Progress
from services.trainer.tracking.figures import figures


class TensorBoard:
    """Event files in `folder`, one for each time that steps went back: TensorBoard then forgets those it had."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: EventFileWriter | None = None
        self._last = 0

    def track(self, steps: Sequence[Progress]) -> None:
        for step in steps:
            if self._writer is None or step.step <= self._last:
                self._restart(step.step)
            values = [Summary.Value(tag=name, simple_value=value) for name, value in figures(step).items()]
            self._add(Event(wall_time=step.time, step=step.step, summary=Summary(value=values)))
            self._last = step.step
        if self._writer:
            self._writer.flush()

    def close(self, is_done: bool) -> None:
        if self._writer:
            self._writer.close()

    def _restart(self, step: int) -> None:
        """Begin a file that replaces whatever earlier ones say of `step` and later ones."""
        self.close(is_done=False)
        self._writer = EventFileWriter(str(self._folder))
        self._add(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def _add(self, event: Event) -> None:
        assert self._writer is not None
        self._writer.add_event(event)
