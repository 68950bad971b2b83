"""The events of a run, read as its events.jsonl grows: messages, samples, checkpoints, its end."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from mlxhog.config import limits
from mlxhog.report.streams import printable, printable_lines

MOST_TEXT = 2000
"""Characters of an event that are kept."""


@dataclass(frozen=True)
class Event:
    """A line of events.jsonl.

    Attributes:
        elapsed_s: seconds of training of the whole run; None where that was not kept.
        step: of the whole run; likewise.
        kind: "message", "sample", "checkpoint" or "ended".
        text: what was said, written or saved.
    """

    elapsed_s: float | None
    step: int | None
    kind: str
    text: str

    def to_json(self) -> list[object]:
        """Return what a page needs."""
        time_s = None if self.elapsed_s is None else round(self.elapsed_s, 2)
        return [time_s, self.step, self.kind, self.text]


class EventLog:
    """Reads a file of events, which may grow meanwhile.

    Attributes:
        path: of the file.
        damaged: lines that were left out.
    """

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self.path, self.damaged = path, 0
        self._read = 0

    def update(self) -> list[Event]:
        """Return the events of whole lines that are new; a file that is not there has none.

        Raises:
            OSError: it cannot be read.
            ValueError: it grew by more than `limits.MOST_BYTES`.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            file.seek(self._read)
            text = limits.read_all(file, limits.MOST_BYTES)
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        events = [_event(line) for line in whole.splitlines()]
        self.damaged += events.count(None)
        return [event for event in events if event is not None]


def _event(line: bytes) -> Event | None:
    """Read a line of events.jsonl; None where it is damaged."""
    try:
        record = json.loads(line)
        kind, step, elapsed_s = record["kind"], record["step"], record["elapsed_s"]
        text = record.get("text", record.get("path"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if type(step) is not int or not isinstance(elapsed_s, int | float):
        return None
    if not math.isfinite(elapsed_s) or not isinstance(kind, str):
        return None
    words = "" if text is None else printable_lines(str(text))[:MOST_TEXT]
    return Event(float(elapsed_s), step, printable(kind)[:20], words)
