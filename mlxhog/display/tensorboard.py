"""Write a run's metrics as TensorBoard events, in the run's folder: `tensorboard --logdir runs`.

Every command that trains the run writes its own file, since a file whose last event is incomplete
after a kill cannot be continued. A resumed run names the step from which earlier events are void.
PyTorch's `SummaryWriter` would import a framework, and write in a thread without reporting errors.
"""

import io
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mlxhog.base.durable import append_all, disk_errors
from mlxhog.base.inside import OpenFolder, inside

VERSION = "brain.Event:2"
"""First event of every file, without which readers ignore the step of a resume."""


class TensorBoard:
    """Writes the events of one command to the file `path`, in a folder that may be renamed."""

    def __init__(
        self, folder: Path, first_step: int = 0, config: Mapping[str, object] | None = None
    ) -> None:
        """Begin a file with the options; events after `first_step` of earlier commands are void.

        Raises:
            EnvironmentLacks: the file cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.plugins.text.summary_v2 import text_pb

        place = f"{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
        self._folder = OpenFolder(folder)
        self._name = f"events.out.tfevents.{place}.{time.monotonic_ns()}"
        start = {"step": first_step + 1, "session_log": SessionLog(status=SessionLog.START)}
        self._append({"file_version": VERSION}, *([start] if first_step else []))
        if config:
            text = "".join(f"    {line}\n" for line in yaml.safe_dump(dict(config)).splitlines())
            self._append({"step": first_step, "summary": text_pb("config", text)})

    @property
    def path(self) -> Path:
        """The present path of the file."""
        return self._folder.path / self._name

    def write(self, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Write the values of steps by their tags.

        Raises:
            EnvironmentLacks: the file cannot be written; earlier events stay valid.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        events = (
            {"step": step, "summary": Summary(value=[{"tag": tag, "simple_value": value}])}
            for step, values in points
            for tag, value in values.items()
        )
        self._append(*events)

    def close(self, *, failed: bool) -> None:
        """Do nothing: every event is in the file."""

    def _append(self, *events: dict[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        for event in events:
            RecordWriter(records).write(Event(wall_time=time.time(), **event).SerializeToString())
        opener = inside((path := self.path).parent)
        with disk_errors(f"writing {path}"), open(path, "ab", 0, opener=opener) as file:
            append_all(file.fileno(), records.getvalue())
