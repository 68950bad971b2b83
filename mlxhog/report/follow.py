"""Follow a run of another process: read its files twice a second, until it ends.

A run writes its progress every two seconds.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import replace

from mlxhog.checkpoint.run import Run
from mlxhog.errors import RunError
from mlxhog.report.metrics import Progress, number, sound_marks
from mlxhog.report.record import RunEvent, RunRecord
from mlxhog.report.views import Observer

LOOK_S = 0.5
MOST_MESSAGES = 20
"""Messages shown at once; of a run that has trained for long, the newest."""


class RunFollower:
    """The newest state of one run.

    Attributes:
        record: its files.
    """

    def __init__(self, run: Run) -> None:
        """Read the run.

        Raises:
            RunError: its metrics cannot be read.
        """
        self.record = RunRecord(run)
        self._n_told, self._notes = 0, set[str]()

    def is_running(self) -> bool:
        """Whether a process trains the run now."""
        try:
            return self.record.run.is_locked()
        except RunError:  # the run was moved or deleted
            return False

    def look(self) -> tuple[Progress, list[str]]:
        """Return the newest state, and the messages that are new.

        Raises:
            RunError: the metrics cannot be read.
        """
        record = self.record
        record.refresh()
        messages = [note for note in record.notes if note not in self._notes]
        self._notes.update(messages)
        n_new = record.n_events - self._n_told
        self._n_told = record.n_events
        events = record.events[-n_new:] if n_new else []
        messages += list(filter(None, map(_message, events)))[-MOST_MESSAGES:]
        sample = record.samples[-1].text if record.samples else None
        progress = record.progress
        return replace(progress, sample=sample, marks=sound_marks(progress.marks)), messages

    def ending(self) -> str:
        """State how the run ended, and suggest the next commands."""
        record = self.record
        record.refresh()
        facts, run = record.facts(), shlex.quote(str(record.run.directory))
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


def _message(event: RunEvent) -> str | None:
    if event.kind == "checkpoint":
        return f"saved {event.text}"
    return event.text if event.kind in ("message", "strategy") else None


def follow(
    follower: RunFollower,
    view: Observer[Progress],
    *,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Show a run in a view until no process trains it any more.

    Args:
        follower: follower of the run.
        view: called about twice a second, and once for every message.
        pause: waits for a number of seconds.

    Raises:
        RunError: the metrics of the run cannot be read.
    """
    while True:
        running = follower.is_running()  # asked first, so that the last look sees all that it wrote
        progress, messages = follower.look()
        for message in messages:
            view(replace(progress, message=message))
        view(progress)
        if not running:
            return
        pause(LOOK_S)
