"""What a command is doing: one line that changes on a terminal, a line per part in a pipe."""

from __future__ import annotations

from typing import TextIO

from mlxhog.report.status_line import StatusLine


class Progress(StatusLine):
    """Told (part, step) before each step.

    Args:
        stream: where to write.
        live: the stream is a terminal that can redraw a line.
    """

    def __init__(self, stream: TextIO, *, live: bool) -> None:
        super().__init__(stream, live=live)
        self._stream, self._part = stream, ""

    def __call__(self, part: str, step: str) -> None:
        """Show what comes next."""
        if self.live:
            self.show(f"{part}  {step}".rstrip())
        elif part != self._part:
            self._stream.write(f"{part} ...\n")
            self._stream.flush()
        self._part = part
