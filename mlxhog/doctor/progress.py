"""What doctor is doing: one line that changes on a terminal, a line per part in a pipe."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, TextIO


class Progress:
    """Told (part, step) before each step.

    Args:
        stream: where to write.
        live: the stream is a terminal that can redraw a line.
    """

    def __init__(self, stream: TextIO, *, live: bool) -> None:
        self._stream, self._part = stream, ""
        self._status: Any = None
        if live:
            from rich.console import Console  # 50 ms that a command in a pipe need not pay

            self._status = Console(file=stream).status("")

    def __call__(self, part: str, step: str) -> None:
        """Show what comes next."""
        if self._status is not None:
            self._status.update(f"{part}  {step}".rstrip())
        elif part != self._part:
            self._stream.write(f"{part} ...\n")
            self._stream.flush()
        self._part = part

    def __enter__(self) -> Self:
        """Take over a line of the terminal."""
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give it back, empty."""
        if self._status is not None:
            self._status.stop()
