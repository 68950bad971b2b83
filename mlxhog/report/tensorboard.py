"""A run's numbers as events of TensorBoard, in the run's folder: `tensorboard --logdir runs`.

    train/loss              recent mean, nats per token
    train/bits_per_byte     the same per byte of text
    train/tokens_per_s      all workers together
    eval/loss               held-out text, nats per token; at the step that was scored
    eval/bits_per_byte      the same per byte of text

Every command that trains the run writes its own file, because a file whose last event is incomplete
after a kill cannot be continued. A resumed run names the step from which earlier events are void.
PyTorch's `SummaryWriter` would import a framework, and write in a thread without reporting errors.
"""

from __future__ import annotations

import importlib.util
import io
import os
import socket
import time
from pathlib import Path
from typing import Any

from mlxhog.base.durable import append_all, disk_errors
from mlxhog.base.inside import inside
from mlxhog.errors import EnvironmentLacks
from mlxhog.report.metrics import Progress

VERSION = "brain.Event:2"
"""First event of every file; without it readers ignore the step at which a run was resumed."""


def require() -> None:
    """Refuse at once if events cannot be written.

    Raises:
        EnvironmentLacks: the package tensorboard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise EnvironmentLacks(
            "report_to tensorboard needs the package tensorboard, which is not installed: "
            "python -m pip install tensorboard; metrics.jsonl has the same numbers without it"
        )


class TensorBoard:
    """Writes the events of one command that trains a run to the file `path`."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """Begin a file; events after `first_step` of earlier commands become void.

        Raises:
            EnvironmentLacks: the file cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import SessionLog

        place = f"{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / f"events.out.tfevents.{place}.{time.monotonic_ns()}"
        self._step = first_step
        start = {"step": first_step + 1, "session_log": SessionLog(status=SessionLog.START)}
        self._append({"file_version": VERSION}, *([start] if first_step else []))

    def write(self, progress: Progress) -> None:
        """Write the numbers of training after new steps, and each evaluation at its step.

        Raises:
            EnvironmentLacks: the file cannot be written; earlier events stay valid.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        trained = progress.step if progress.step > self._step else None
        self._step = max(self._step, progress.step)
        events = (
            {"step": step, "summary": Summary(value=[{"tag": tag, "simple_value": value}])}
            for step, tag, value in (
                (progress.val_step, "eval/loss", progress.val_loss),
                (progress.val_step, "eval/bits_per_byte", progress.val_bits_per_byte),
                (trained, "train/loss", progress.loss),
                (trained, "train/bits_per_byte", progress.train_bits_per_byte),
                (trained, "train/tokens_per_s", progress.tokens_per_s),
            )
            if step is not None and value is not None
        )
        self._append(*events)

    def _append(self, *events: dict[str, Any]) -> None:
        """Append events with one write."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        for event in events:
            whole = Event(wall_time=time.time(), **event)
            RecordWriter(records).write(whole.SerializeToString())
        opener = inside(self.path.parent)
        with disk_errors(f"writing {self.path}"), open(self.path, "ab", 0, opener=opener) as file:
            append_all(file.fileno(), records.getvalue())
