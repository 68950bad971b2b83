"""What a worker found out while it started and the user should read: lines of its log.

The supervisor passes them on once the worker runs, so they stand among a run's opening lines.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_MARK = "notice: "


def tell(text: str) -> None:
    """Leave a notice, from a worker."""
    with suppress(OSError):  # the disk of the log may be full
        print(f"{_MARK}{text}", flush=True)


def told(log: Path, since: int) -> list[str]:
    """The notices in a worker's log from byte `since` on."""
    if not log.exists():
        return []
    with log.open("rb") as stream:
        stream.seek(since)
        lines = stream.read().decode(errors="replace").splitlines()
    return [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
