"""One line of a terminal that changes while a command works, and is gone when it is done."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, TextIO

from mlxhog.report.printable import console


class StatusLine:
    """Context manager over the line; without a terminal it shows nothing.

    Args:
        stream: where to write.
        live: the stream is a terminal that can redraw a line.
    """

    def __init__(self, stream: TextIO, *, live: bool) -> None:
        self.live = live
        self._status: Any = None
        if live:
            self._status = console(stream).status("")

    def show(self, text: str) -> None:
        """Replace what the line says."""
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(text))  # not markup: names may hold brackets

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
