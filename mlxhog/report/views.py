"""Views of work in progress: plain lines, a picture that is redrawn, a status line.

A view is called with a progress a few times a second and must not block. It shows each message
once, and the newest state at intervals. rich, whose import takes 50 ms, is imported only to draw.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TextIO, TypeVar

from mlxhog.report.streams import console, printable_lines, wrapped

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text


class HasMessage(Protocol):
    """A progress that may have a message for the user."""

    @property
    def message(self) -> str | None:
        """One or several lines; the same message until there is a new one."""


P = TypeVar("P", bound=HasMessage)

Observer = Callable[[P], None]
"""Called with a progress a few times a second; must not block. A `View` is one."""

Tell = Callable[[str], None]
"""Shows the user a line."""

TellStep = Callable[[str, str], None]
"""Shows the user a part of the work and its step ("" for none); a `StatusLine` is one."""


def may_redraw(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a picture can be redrawn: on a terminal, unless `TERM=dumb`.

    `NO_COLOR` removes only the colors of a picture; rich reads it.
    """
    return stream.isatty() and environ.get("TERM") != "dumb"


def in_notebook() -> bool:
    """Whether this process runs the cells of a notebook, which can show pictures."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return getattr(shell, "kernel", None) is not None


class View(Generic[P]):
    """A view that shows nothing; others define how to `show` a message and `draw` the state."""

    def __init__(self) -> None:
        self._message: str | None = None

    def __enter__(self) -> Self:
        """Take over the output, if necessary."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the output back."""

    def __call__(self, progress: P) -> None:
        """Show a new message, then the state."""
        if progress.message is not None and progress.message != self._message:
            self.show(printable_lines(progress.message))
        self._message = progress.message
        self.draw(progress)

    def show(self, message: str) -> None:
        """Show a message."""

    def draw(self, progress: P) -> None:
        """Show the newest state."""


class LineView(View[P]):
    """A view as plain lines of up to 100 characters; longer lines are wrapped.

    Args:
        stream: stream for the lines.
        every_s: seconds between lines of the state.
        clock: monotonic clock in seconds.
    """

    def __init__(self, stream: TextIO, every_s: float, clock: Callable[[], float]) -> None:
        super().__init__()
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._next_s = clock()

    def show(self, message: str) -> None:
        """Write lines."""
        self._stream.write("".join(f"{part}\n" for part in wrapped(message)))
        self._stream.flush()

    def draw(self, progress: P) -> None:
        """Write the lines of `news`."""
        for text in self.news(progress):
            self.show(text)

    def news(self, progress: P) -> Iterator[str]:
        """Yield lines that have not been written."""
        raise NotImplementedError

    def due(self) -> bool:
        """Whether a line of the state is due; if so, the next one is due `every_s` later."""
        if self._clock() < self._next_s:
            return False
        self._next_s = self._clock() + self._every_s
        return True


class LiveView(View[P]):
    """A view that redraws one picture on a terminal or in a notebook, below the messages.

    In a notebook the output of the cell is replaced; rich's `Live` would need `ipywidgets` there.

    Args:
        console: a rich console on a terminal; None is the output of a notebook's cell.
    """

    COLUMNS = 100  # of a cell's output
    STYLE = "white-space: pre; line-height: 1.3; font-family: Menlo, 'DejaVu Sans Mono', monospace"

    def __init__(self, console: Console | None) -> None:
        super().__init__()
        self._console = console
        self._messages: list[Text] = []
        self._picture: RenderableType = ""
        self._live: Live | None = None
        self._cell: Any = None  # IPython's handle of the output

    def __enter__(self) -> Self:
        """Take over the terminal; a cell's output begins with the first message."""
        if self._console is not None:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the output back; the last picture stays."""
        if self._live is not None:
            self._live.stop()

    def show(self, message: str, style: str = "yellow") -> None:
        """Print a message above the picture."""
        from rich.text import Text

        if self._console is not None:
            self._console.print(Text(message, style=style))
            return
        self._messages.append(Text(message, style=style))
        self._draw_cell()

    def draw(self, progress: P) -> None:
        """Redraw the picture."""
        self._picture = self.picture(progress)
        if self._console is None:
            self._draw_cell()
        elif self._live is not None:
            self._live.update(self._picture, refresh=True)

    def _draw_cell(self) -> None:
        page = console(
            StringIO(),
            record=True,
            width=self.COLUMNS,
            color_system="truecolor",
            force_jupyter=False,
        )
        page.print(*self._messages, self._picture, sep="\n")
        code = f'<pre style="{self.STYLE}">{{code}}</pre>'
        output = {
            "text/plain": page.export_text(clear=False),
            "text/html": page.export_html(inline_styles=True, code_format=code),
        }
        if self._cell is None:
            display = importlib.import_module("IPython.display").display
            self._cell = display(output, raw=True, display_id=True)
        else:
            self._cell.update(output, raw=True)

    def picture(self, progress: P) -> RenderableType:
        """Return the picture of the newest state."""
        raise NotImplementedError


class StatusLine:
    """One line of a terminal that changes while a command works, and disappears at the end.

    A context manager over the line. Called with (part, step) it shows the next step of the work.
    Without a terminal it writes a line for each part, and nothing of `show`.

    Args:
        stream: where to write.
        quiet: write nothing.

    Attributes:
        quiet: as above.
        live: whether the stream is a terminal that can redraw a line.
    """

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        self.quiet, self.live, self._stream = quiet, not quiet and may_redraw(stream), stream
        self._part = ""
        self._status: Any = None
        if self.live:
            self._console = console(stream)
            self._status = self._console.status("")

    def __call__(self, part: str, step: str) -> None:
        """Show the next step."""
        if self.live:
            self.show(f"{part}  {step}".rstrip())
        elif part != self._part:
            self.tell(f"{part} ...")
        self._part = part

    def show(self, text: str) -> None:
        """Replace the text of the line."""
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(text))  # not markup: names may hold brackets

    def tell(self, message: str) -> None:
        """Write a line that stays, above the changing one; nothing if `quiet`."""
        if self._status is not None:
            from rich.text import Text

            for line in wrapped(message):
                self._console.print(Text(line))
        elif not self.quiet:
            self._stream.write("".join(f"{line}\n" for line in wrapped(message)))
            self._stream.flush()

    def __enter__(self) -> Self:
        """Take over a line of the terminal."""
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the line and give it back."""
        if self._status is not None:
            self._status.stop()


def numbered(tell: TellStep, count: int) -> TellStep:
    """Number the `count` parts of a command's work: `2 of 9: backends`.

    Args:
        tell: called with (numbered part, step), such as a `StatusLine`.
        count: number of parts; a new name of the part begins the next one.
    """
    parts = list[str]()

    def told(part: str, step: str) -> None:
        if parts[-1:] != [part]:
            parts.append(part)
        tell(f"{len(parts)} of {count}: {part}", step)

    return told
