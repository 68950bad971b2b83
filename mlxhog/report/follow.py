"""Follow a run of another process: read its newest state twice a second, until it ends.

A run writes its progress to files every two seconds. If its process serves the shared memory, it is
mapped read-only as well, and the view is as recent as that of the trainer.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from typing import Any

from mlxhog.arena import Arena
from mlxhog.arena.control import Command
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.requests import socket_path
from mlxhog.base.typed import fill
from mlxhog.base.workers import WorkerSpec
from mlxhog.checkpoint.run import Run
from mlxhog.config.budget import Budget
from mlxhog.errors import ArenaError, RunError, message_of
from mlxhog.report.history import History
from mlxhog.report.metrics import (
    Activity,
    Doing,
    Evaluation,
    Progress,
    marks_of,
    number,
)
from mlxhog.report.monitor import Monitor
from mlxhog.report.record import EventLog, RunRecord
from mlxhog.report.views import Observer

LOOK_S = 0.5
MOST_MESSAGES = 20
"""Messages shown at once; of a run that has trained for long, the newest."""
ACTIVITIES: dict[int, Activity] = {
    Command.REST: Activity.FINISHING,
    Command.EVALUATE: Activity.EVALUATING,
    Command.SAMPLE: Activity.SAMPLING,
}


class RunFollower:
    """The newest state of one run; use it as a context manager.

    Attributes:
        run: the run.
        notes: problems with reading the run, each once.
    """

    def __init__(self, run: Run) -> None:
        """Prepare to read the run; nothing is read yet."""
        self.run = run
        self.notes: list[str] = []
        self._log = EventLog(run.events_path)
        self._stack = ExitStack()
        self._arena: Arena | None = None
        self._monitor: Monitor | None = None
        self._history = History(run.metrics_path)
        self.sample: str | None = None
        self.messages: list[str] = []

    def __enter__(self) -> RunFollower:
        """Attach the shared memory if the run serves it."""
        if self.is_running():
            try:
                arena = Arena.connect(socket_path(self.run.directory))
            except ArenaError as error:
                self.notes.append(
                    f"{error}; the state comes from its files, which are written every 2 s"
                )
            else:
                self._arena = self._stack.enter_context(arena)
        return self

    def __exit__(self, *_: object) -> None:
        """Detach the shared memory."""
        self._monitor = None
        self._stack.close()

    def is_running(self) -> bool:
        """Whether a process trains the run now."""
        try:
            return self.run.is_locked()
        except RunError:  # the run was moved or deleted
            return False

    def look(self) -> Progress:
        """Return the newest state; new messages are in `messages`, a sample in the progress."""
        self._read_files()
        newest = self._history.newest
        progress = self._of_arena() if self._arena is not None else None
        progress = progress or progress_of(newest | self._history.evaluation)
        return replace(progress, sample=self.sample, marks=marks_of(newest))

    def _read_files(self) -> None:
        try:
            events = self._log.update()
        except (OSError, ValueError) as error:
            self._tell(f"{self._log.path.name} cannot be read: {message_of(error)}")
            events = []
        for event in events:
            if event.kind == "sample":
                self.sample = event.text
            elif event.kind == "checkpoint":
                self.messages.append(f"saved {event.text}")
            elif event.kind in ("message", "strategy"):
                self.messages.append(event.text)
        del self.messages[:-MOST_MESSAGES]
        try:
            self._history.update()
        except OSError as error:
            self._tell(f"{self.run.metrics_path.name} cannot be read: {message_of(error)}")

    def _tell(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _of_arena(self) -> Progress | None:
        """The state read from the shared memory; None until the files name the workers."""
        arena, newest = self._arena, progress_of(self._history.newest | self._history.evaluation)
        if arena is None or not newest.workers:
            return None
        if self._monitor is None:
            self._monitor = self._attach(arena, newest)
        self._monitor.workers.update(
            {worker.slot: WorkerSpec(worker.backend, 1) for worker in newest.workers}
        )
        monitor, command = self._monitor, arena.counters.load("command")
        monitor.drain()
        # The rings lack evaluations before this attached.
        scores = {one.name: getattr(newest, one.name) for one in fields(Evaluation)}
        monitor.evaluation = Evaluation(**scores)
        if monitor.loss is None:
            monitor.loss, monitor.train_bits_per_byte = newest.loss, newest.train_bits_per_byte
        if command not in (Command.TRAIN, 0) and monitor.ended_ns is None:
            monitor.ended_ns = monotonic_ns()
        activity = Activity.PAUSING if arena.counters.load("pause") else ACTIVITIES.get(command)
        return monitor.progress(doing=None if activity is None else Doing(activity))

    def _attach(self, arena: Arena, newest: Progress) -> Monitor:
        record = self.run.read_status().get("budget")
        budget = fill(Budget, record if isinstance(record, dict) else {})
        if limit_ns := arena.counters.load("limit_ns"):
            budget = replace(budget, seconds=limit_ns / 1e9)
        return Monitor(arena, (), budget, gpu_write=newest.gpu_write, kernels=newest.kernels)

    def ending(self) -> str:
        """State how the run ended, and suggest the next commands."""
        record = RunRecord(self.run)
        facts, run = record.facts(), shlex.quote(str(self.run.directory))
        bits = number(record.last("val_bits_per_byte"))
        lines = [
            f"{record.state}: {facts['steps']} steps, {facts['tokens']} tokens in "
            f"{facts['training time']}, held-out {bits} bits per byte{record.scored_at}"
        ]
        if "error" in facts:
            lines.append(facts["error"])
        if record.state == "interrupted" and not record.result:
            lines.append("its process ended without a final status: it was killed")
        again = "" if record.state == "done" else f"\n      mlxhog train --resume {run}"
        return "\n".join([*lines, f"next: mlxhog report {run}{again}"])


def follow(
    follower: RunFollower,
    view: Observer[Progress],
    *,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Show a run in a view until no process trains it any more.

    Args:
        follower: follower of the run, attached.
        view: called about twice a second, and once for every message.
        pause: waits for a number of seconds.
    """
    n_notes = 0
    while True:
        running = follower.is_running()  # asked first, so that the last look sees all that it wrote
        progress = follower.look()
        notes, n_notes = follower.notes[n_notes:], len(follower.notes)
        for message in (*notes, *follower.messages):
            view(replace(progress, message=message))
        follower.messages.clear()
        view(progress)
        if not running:
            return
        pause(LOOK_S)


def progress_of(record: Mapping[str, Any]) -> Progress:
    """Read a line of metrics; a missing field, or one of another type, gets its default."""
    return fill(Progress, record)
