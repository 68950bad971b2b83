"""Follow a run of another process: read its files twice a second, until it ends.

A run writes its progress every two seconds.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from mlxhog.errors import RunError
from mlxhog.report.metrics import Progress, number
from mlxhog.report.record import RunRecord
from mlxhog.report.views import Observer

LOOK_S = 0.5
MOST_MESSAGES = 20
"""Messages shown at once; of a run that has trained for long, the newest."""


def follow(
    record: RunRecord, view: Observer[Progress], *, pause: Callable[[float], None] = time.sleep
) -> None:
    """Show a run in a view until no process trains it any more.

    Args:
        record: of the run; it is read again at every look.
        view: called about twice a second, and once for every message.
        pause: waits for a number of seconds.

    Raises:
        RunError: the metrics of the run cannot be read.
    """
    shown, n_shown, is_running = set[str](), 0, True
    while is_running:
        is_running = False
        with suppress(RunError):  # the run was moved or deleted
            is_running = record.run.is_locked()  # asked first: the last look sees everything
        record.refresh()
        messages = [note for note in record.notes if note not in shown]
        shown.update(messages)
        n_new, n_shown = record.n_events - n_shown, record.n_events
        for event in record.events[-n_new:] if n_new else []:
            if event.kind == "checkpoint":
                messages.append(f"saved {event.text}")
            elif event.kind in ("message", "strategy") and event.text:
                messages.append(event.text)
        for message in messages[-MOST_MESSAGES:]:
            view(replace(record.progress, message=message))
        view(record.progress)
        if is_running:
            pause(LOOK_S)


def ending(record: RunRecord) -> str:
    """State how a run ended, and suggest the next commands."""
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
