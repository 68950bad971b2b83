"""Views of work in progress: plain lines, one picture redrawn in place, one status line.

A view is called with a progress a few times a second and must not block. It shows a message once,
and the newest state now and then. rich, which takes 50 ms, is imported only where it draws.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TextIO, TypeVar

from mlxhog.config.quantities import format_bytes
from mlxhog.report.streams import console, printable_lines

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text


class HasMessage(Protocol):
    """A progress, which may come with a message to the user."""

    @property
    def message(self) -> str | None:
        """A sentence or several lines; the same one until there is another."""


P = TypeVar("P", bound=HasMessage)


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


def in_notebook() -> bool:
    """Whether this process runs the cells of a notebook, which show pictures."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return getattr(shell, "kernel", None) is not None


class View(ABC, Generic[P]):
    """The messages of a view; `show` says where one goes, `draw` what else there is."""

    def __init__(self) -> None:
        self._message: str | None = None

    def __enter__(self) -> Self:
        """Take over the output, where that takes anything."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the output back."""

    def __call__(self, progress: P) -> None:
        """Show what is new."""
        if progress.message is not None and progress.message != self._message:
            self.show(printable_lines(progress.message))
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


class LiveView(View[P]):
    """A view that redraws one picture on a terminal or in a notebook; messages stand above it.

    Args:
        console: a rich console on a terminal; None is the output of a notebook's cell.
    """

    def __init__(self, console: Console | None) -> None:
        from rich.live import Live

        super().__init__()
        self._live: Live | CellOutput
        if console is None:
            self._live = cell = CellOutput()
            self._print: Callable[[Text], None] = cell.print
        else:
            self._live = Live(console=console, auto_refresh=False, transient=False)
            self._print = self._live.console.print

    def __enter__(self) -> Self:
        """Take over the output."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the output back; the last picture stays."""
        self._live.stop()

    def show(self, message: str) -> None:
        """Print a message above the picture."""
        from rich.text import Text

        self._print(Text(message, style="yellow"))

    def draw(self, progress: P) -> None:
        """Redraw."""
        self._live.update(self.picture(progress), refresh=True)

    @abstractmethod
    def picture(self, progress: P) -> RenderableType:
        """Return the picture of the newest state."""


class CellOutput:
    """Messages and a picture in the output of a notebook's cell, which changes in place.

    What rich's `Live` is on a terminal: in a notebook that needs another package, `ipywidgets`.
    """

    COLUMNS = 100
    STYLE = "white-space: pre; line-height: 1.3; font-family: Menlo, 'DejaVu Sans Mono', monospace"

    def __init__(self) -> None:
        self._messages: list[Text] = []
        self._picture: RenderableType = ""
        self._handle: Any = None

    def start(self) -> None:
        """Nothing to do: the output is there with the first message."""

    def stop(self) -> None:
        """Nothing to do: the last picture stays."""

    def print(self, message: Text) -> None:
        """Show a message below those before it."""
        self._messages.append(message)
        self._draw()

    def update(self, picture: RenderableType, *, refresh: bool) -> None:
        """Replace the picture."""
        self._picture = picture
        if refresh:
            self._draw()

    def _draw(self) -> None:
        page = console(
            StringIO(),
            record=True,
            width=self.COLUMNS,
            color_system="truecolor",
            force_jupyter=False,
        )
        page.print(*self._messages, self._picture, sep="\n")
        output = {
            "text/plain": page.export_text(clear=False),
            "text/html": page.export_html(
                inline_styles=True, code_format=f'<pre style="{self.STYLE}">{{code}}</pre>'
            ),
        }
        if self._handle is None:
            display = importlib.import_module("IPython.display").display
            self._handle = display(output, raw=True, display_id=True)
        else:
            self._handle.update(output, raw=True)


class StatusLine:
    """One line of a terminal that changes while a command works, and is gone when it is done.

    A context manager over the line; without a terminal it shows nothing.

    Args:
        stream: where to write.
        live: the stream is a terminal that can redraw a line.
    """

    def __init__(self, stream: TextIO, *, live: bool) -> None:
        self.live, self._stream = live, stream
        self._status: Any = None
        if live:
            self._status = console(stream).status("")

    def show(self, text: str) -> None:
        """Replace what the line says."""
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(text))  # not markup: names may hold brackets

    def tell(self, message: str) -> None:
        """Write a line that stays."""
        self._stream.write(message + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        """Take over a line of the terminal."""
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back, empty."""
        if self._status is not None:
            self._status.stop()


class PartLine(StatusLine):
    """Called with (part, step) before each step; a pipe gets a line per part.

    Args:
        stream: where to write.
        live: the stream is a terminal that can redraw a line.
    """

    def __init__(self, stream: TextIO, *, live: bool) -> None:
        super().__init__(stream, live=live)
        self._part = ""

    def __call__(self, part: str, step: str) -> None:
        """Show what comes next."""
        if self.live:
            self.show(f"{part}  {step}".rstrip())
        elif part != self._part:
            self.tell(f"{part} ...")
        self._part = part


class BytesLine(StatusLine):
    """Called with (what, bytes done, bytes in all) now and then.

    A terminal has one line that changes; a pipe gets a line every few seconds, so short work
    leaves none.

    Args:
        stream: where to write.
        quiet: write nothing.
        every_s: seconds between lines of a pipe.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        quiet: bool,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet, self._every_s, self._clock = quiet, every_s, clock
        self._next_s = clock() + every_s
        super().__init__(stream, live=may_redraw(stream, quiet=quiet))

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far it is."""
        text = f"{done / max(total, 1):.0%}  {format_bytes(done)} of {format_bytes(total)}  {what}"
        if self.live:
            self.show(text)
        elif not self._quiet and self._clock() >= self._next_s:
            self._next_s = self._clock() + self._every_s
            self.tell(text)
