"""Views of work in progress: observers, and a status line.

A view is called a few times a second and must not block; its text waits for a terminal in a
`LastingStream`. rich, whose import takes 50 ms, is imported only to draw.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Self, TypeVar

from mlxhog.base.output import lasting, may_redraw
from mlxhog.display.plain import PlainLines, RunView
from mlxhog.display.streams import console, wrapped

P = TypeVar("P")

Observer = Callable[[P], None]  # called with a progress a few times a second; must not block
Tell = Callable[[str], None]  # shows the user a line

TellStep = Callable[[str, str], None]
"""Shows a part of the work and its step, or ""; a `StatusLine` is one."""


def observer(
    stream: object, *, quiet: bool = False, environ: Mapping[str, str] = os.environ
) -> RunView:
    """Return a live table for a notebook or a capable terminal, else plain lines."""
    if quiet:
        return RunView()
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    in_notebook = getattr(shell, "kernel", None) is not None
    if not in_notebook and not may_redraw(stream, environ):
        return PlainLines(stream)
    from mlxhog.display.terminal import Cell, LiveTable

    return Cell() if in_notebook else LiveTable(console(stream))


REDRAW_S, LINE_S = 0.2, 5.0
"""Seconds between two texts of `StatusLine.tick` on a terminal, and between its lines elsewhere."""


class StatusLine:
    """A status line of a terminal, for the time of its `with` block.

    Called with (part, step) it shows the next step of the work. On another stream, where it is not
    `live`, it writes a line for each part, and nothing of `show`.
    """

    def __init__(self, stream: object, *, quiet: bool) -> None:
        self.quiet, self.live = quiet, not quiet and may_redraw(stream)
        self._stream = lasting(stream)
        self._part, self._next_s = "", 0.0
        if self.live:
            from mlxhog.display.terminal import Spinner

            self._spinner = Spinner(console(self._stream))

    def __call__(self, part: str, step: str) -> None:
        """Show the next step."""
        if self.live:
            self.show(f"{part}  {step}".rstrip())
        elif part != self._part:
            self.tell(f"{part} ...")
        self._part = part

    def show(self, text: str) -> None:
        """Replace the text of the line."""
        if self.live:
            self._spinner.show(text)

    def tick(self, text: Callable[[], str]) -> None:
        """Show a text from time to time, or write it where there is no terminal; called often."""
        now = time.monotonic()
        if not self.quiet and now >= self._next_s:
            self._next_s = now + (REDRAW_S if self.live else LINE_S)
            (self.show if self.live else self.tell)(text())

    def tell(self, message: str) -> None:
        """Write a line above the status line; nothing if `quiet`."""
        for part in wrapped(message):
            if self.live:
                self._spinner.console.print(part, markup=False, highlight=False)
            elif not self.quiet:
                self._stream.write(f"{part}\n")
                self._stream.flush()

    def __enter__(self) -> Self:
        if self.live:
            self._spinner.start()
        else:
            self._next_s = time.monotonic() + LINE_S
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self._spinner.stop()
        self._stream.drain()


def numbered(tell: TellStep, count: int) -> TellStep:
    """Number the `count` parts of a command's work: `2 of 9: backends`."""
    parts = list[str]()

    def tell_numbered(part: str, step: str) -> None:
        if parts[-1:] != [part]:
            parts.append(part)
        tell(f"{len(parts)} of {count}: {part}", step)

    return tell_numbered
