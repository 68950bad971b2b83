"""What every view of work in progress does: show a message once, and the newest state now and then.

A view is an observer, called with a progress a few times a second; it must not block.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Generic, Protocol, Self, TextIO, TypeVar

from mlxhog.report.printable import printable


class Told(Protocol):
    """A progress, which may come with a message to the user."""

    @property
    def message(self) -> str | None:
        """A sentence or several lines; the same one until there is another."""


P = TypeVar("P", bound=Told)


def may_redraw(
    stream: TextIO, *, quiet: bool = False, environ: Mapping[str, str] = os.environ
) -> bool:
    """Whether a picture may be drawn and drawn again: on a terminal that nothing speaks against.

    Args:
        stream: where progress goes, usually stderr.
        quiet: plain lines even on a terminal.
        environ: `NO_COLOR` and `TERM=dumb` ask for plain lines, too.
    """
    asked_not_to = bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"
    return stream.isatty() and not quiet and not asked_not_to


class View(ABC, Generic[P]):
    """The messages of a view; `show` says where one goes, `draw` what else there is."""

    def __init__(self) -> None:
        self._message: str | None = None

    def __enter__(self) -> Self:
        """Take over the output, where that takes anything."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the output back."""

    def __call__(self, progress: P) -> None:
        """Show what is new."""
        if progress.message is not None and progress.message != self._message:
            self.show("\n".join(map(printable, progress.message.split("\n"))))
        self._message = progress.message
        self.draw(progress)

    @abstractmethod
    def show(self, message: str) -> None:
        """Show a message."""

    @abstractmethod
    def draw(self, progress: P) -> None:
        """Show the newest state."""


class LineView(View[P]):
    """A view as plain lines, each written as a whole.

    Args:
        stream: where lines go.
        every_s: seconds between lines of the state.
        clock: seconds, monotonic.
    """

    def __init__(self, stream: TextIO, every_s: float, clock: Callable[[], float]) -> None:
        super().__init__()
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._next_s = clock()

    def show(self, message: str) -> None:
        """Write a line."""
        self._stream.write(message + "\n")
        self._stream.flush()

    def draw(self, progress: P) -> None:
        """Write what `news` finds."""
        for text in self.news(progress):
            self.show(text)

    @abstractmethod
    def news(self, progress: P) -> Iterator[str]:
        """Yield lines that have not been written."""

    def due(self) -> bool:
        """Whether a line of the state may be written now; the next one then has to wait."""
        if self._clock() < self._next_s:
            return False
        self._next_s = self._clock() + self._every_s
        return True
