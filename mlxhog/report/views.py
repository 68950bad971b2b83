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
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TextIO, TypeVar

from mlxhog.files.quantities import format_bytes
from mlxhog.report.streams import console, printable_lines, wrapped

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text


class HasMessage(Protocol):
    """A progress, which may come with a message to the user."""

    @property
    def message(self) -> str | None:
        """A sentence or several lines; the same one until there is another."""


P = TypeVar("P", bound=HasMessage)


def may_redraw(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a picture may be drawn and drawn again: on a terminal, unless it says `TERM=dumb`.

    `NO_COLOR` takes the colors from a picture, and nothing else: rich looks at it.
    """
    return stream.isatty() and environ.get("TERM") != "dumb"


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


class Silence(View[P]):
    """A view that shows nothing."""

    def show(self, message: str) -> None:
        """Show nothing."""

    def draw(self, progress: P) -> None:
        """Show nothing."""


class LineView(View[P]):
    """A view as plain lines of up to 100 characters; what is longer goes on in the next line.

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
        """Write lines."""
        for line in message.split("\n"):
            self._stream.write("".join(f"{part}\n" for part in wrapped(line)))
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
        super().__init__()
        self._output: CellOutput | Window
        self._output = CellOutput() if console is None else Window(console)

    def __enter__(self) -> Self:
        """Take over the output."""
        self._output.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the output back; the last picture stays."""
        self._output.stop()

    def show(self, message: str, style: str = "yellow") -> None:
        """Print a message above the picture."""
        from rich.text import Text

        self._output.print(Text(message, style=style))

    def draw(self, progress: P) -> None:
        """Redraw."""
        self._output.update(self.picture(progress), refresh=True)

    @abstractmethod
    def picture(self, progress: P) -> RenderableType:
        """Return the picture of the newest state."""


class Window:
    """Messages and a picture on a terminal.

    A window that becomes narrower breaks the lines of the picture in it, so the place where it
    began is lost. Then the window is cleared, and the newest messages are printed again.

    Args:
        console: a rich console.
    """

    MESSAGES = 20  # kept for that

    def __init__(self, console: Console) -> None:
        self._console, self._width = console, console.width
        self._messages: deque[Text] = deque(maxlen=self.MESSAGES)
        self._live = self._new()

    def _new(self) -> Live:
        from rich.live import Live

        return Live(console=self._console, auto_refresh=False, transient=False)

    def start(self) -> None:
        """Take over the terminal."""
        self._live.start()

    def stop(self) -> None:
        """Give it back; the last picture stays."""
        self._live.stop()

    def print(self, message: Text) -> None:
        """Print a message above the picture."""
        self._messages.append(message)
        self._console.print(message)

    def update(self, picture: RenderableType, *, refresh: bool) -> None:
        """Replace the picture."""
        before, self._width = self._width, self._console.width
        if self._width < before and self._live.is_started:
            self._begin_again()
        self._live.update(picture, refresh=refresh)

    def _begin_again(self) -> None:
        self._live.stop()
        self._console.clear()
        for message in self._messages:
            self._console.print(message)
        self._live = self._new()
        self._live.start()


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
        quiet: write nothing.

    Attributes:
        quiet: as above.
        live: whether the stream is a terminal that can redraw a line.
    """

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        self.quiet, self.live, self._stream = quiet, not quiet and may_redraw(stream), stream
        self._status: Any = None
        if self.live:
            self._console = console(stream)
            self._status = self._console.status("")

    def show(self, text: str) -> None:
        """Replace what the line says."""
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(text))  # not markup: names may hold brackets

    def tell(self, message: str) -> None:
        """Write a line that stays, unless it is to be quiet; on a terminal above the other."""
        if self.quiet:
            return
        if self._status is not None:
            from rich.text import Text

            for line in wrapped(message):
                self._console.print(Text(line))
            return
        self._stream.write("".join(f"{line}\n" for line in wrapped(message)))
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
        quiet: write nothing.
    """

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        super().__init__(stream, quiet=quiet)
        self._part = ""

    def __call__(self, part: str, step: str) -> None:
        """Show what comes next."""
        if self.live:
            self.show(f"{part}  {step}".rstrip())
        elif part != self._part:
            self.tell(f"{part} ...")
        self._part = part


class Stages:
    """Says before each part of a command's work which of its parts it is: `2 of 9: backends`.

    Args:
        tell: called with (part, step), such as a `PartLine`.
        count: parts in all.
    """

    def __init__(self, tell: Callable[[str, str], None], count: int) -> None:
        self._tell, self._count = tell, count
        self._number, self._part = 0, ""

    def __call__(self, part: str, step: str) -> None:
        """Show a step of a part; another part than before is the next."""
        if part != self._part:
            self._part, self._number = part, self._number + 1
        self._tell(f"{self._number} of {self._count}: {part}", step)


class BytesLine(StatusLine):
    """Called with (what, bytes done, bytes in all) now and then.

    A terminal has one line that changes; a pipe gets a line every few seconds, so short work
    leaves none.

    Args:
        stream: where to write.
        quiet: write nothing.
        clock: seconds, monotonic.
    """

    EVERY_S = 5.0  # between lines of a pipe

    def __init__(
        self, stream: TextIO, *, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._next_s = clock() + self.EVERY_S
        super().__init__(stream, quiet=quiet)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far it is."""
        text = f"{done / max(total, 1):.0%}  {format_bytes(done)} of {format_bytes(total)}  {what}"
        if self.live:
            self.show(text)
        elif not self.quiet and self._clock() >= self._next_s:
            self._next_s = self._clock() + self.EVERY_S
            self.tell(text)
