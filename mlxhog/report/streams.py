"""Standard streams that are safe to write: no control characters, and no end of work with them.

Names in others' files reach a terminal and a spreadsheet. A tensor, a file or a study may be named
so that a terminal which prints the name moves its cursor, changes its title or answers as if
someone had typed. One place stops that: whatever the command line prints goes through a
`PrintableStream`, and pictures of rich, whose colors are escape sequences, too, come from
`console`, which cleans text before it is colored. JSON needs neither: it escapes such characters
itself.

A stream also breaks: the reader of a pipe leaves, a disk fills up. A `LastingStream` falls silent
then, because what is told about work must not end the work.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100
"""Columns of text, where a pipe has no width of its own or a window has more."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet take a cell for a formula."""


def printable(text: str) -> str:
    """Return text that cannot move the cursor: a model of bytes may write control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " for c in text)


def printable_lines(text: str) -> str:
    """As `printable`, and lines still end."""
    return "\n".join(map(printable, text.split("\n")))


def wrapped(text: str, width: int = WIDTH) -> list[str]:
    """Break lines where two spaces stand, else between words; the rest is set in by two columns.

    Args:
        text: lines, whose indentation stays.
        width: that lines keep to as far as words allow, 100 by default.
    """
    if "\n" in text:
        return [part for line in text.split("\n") for part in wrapped(line, width)]
    text = printable(text).rstrip()
    if len(text) <= width:
        return [text]
    indent = " " * (len(text) - len(text.lstrip()))
    lines: list[str] = []
    for part in re.split(r" {2,}", text.strip()):
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
            continue
        begin = f"{indent}  " if lines else indent
        lines += textwrap.wrap(
            part, max(width, 2 * len(begin)), initial_indent=begin, subsequent_indent=f"{indent}  ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return lines


def in_columns(name: str, parts: Iterable[str], width: int) -> list[str]:
    """Put parts with commas between them beside a name; lines break between parts, where they can.

    >>> in_columns("made: ", ["lr 0.003", "time 1 h"], 16)
    ['made: lr 0.003,', '      time 1 h']

    Args:
        name: what the first line begins with; the others are set in by as much.
        parts: texts; one that is longer than a line breaks between its words.
        width: that lines keep to as far as words allow.
    """
    indent, lines, room = " " * len(name), [""], max(width - len(name), 16)
    texts = [printable(part) for part in parts]
    texts[:-1] = [f"{text}," for text in texts[:-1]]
    for text in texts:
        if lines[-1] and len(lines[-1]) + 1 + len(text) > room:
            lines.append("")
        lines[-1] += f" {text}" if lines[-1] else text
    broken = [
        piece
        for line in lines
        for piece in textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False)
    ]
    return [f"{indent if k else name}{line}" for k, line in enumerate(broken)]


def cell(text: str) -> str:
    """Return a text as a cell of CSV that no spreadsheet computes with; for texts, not numbers."""
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


class PrintableStream:
    """A stream of text that loses control characters but newlines; else as the stream it wraps.

    Args:
        stream: where text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.verbatim = stream

    def write(self, text: str) -> int:
        """Write text, cleaned; returns how many characters it has."""
        self.verbatim.write(printable_lines(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the wrapped stream's."""
        return getattr(self.verbatim, name)


def verbatim(stream: TextIO) -> TextIO:
    """Return the stream below a `PrintableStream`: for data that goes to a file or a program."""
    return stream.verbatim if isinstance(stream, PrintableStream) else stream


@contextlib.contextmanager
def printable_output() -> Iterator[None]:
    """Clean what this process prints, to stdout and stderr."""
    # Whatever lacks a method of a stream passes on that of the one it wraps.
    out, err = (cast(TextIO, PrintableStream(verbatim(s))) for s in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def console(stream: TextIO, **options: Any) -> Console:
    """Return a rich console, with options of its own, that colors text after it was cleaned."""
    from rich.console import Console  # 50 ms that a command in a pipe need not pay
    from rich.segment import Segment

    class CleanConsole(Console):
        def render(self, *args: Any, **kwargs: Any) -> Iterator[Segment]:
            for segment in super().render(*args, **kwargs):
                text = segment.text if segment.control else printable_lines(segment.text)
                yield Segment(text, segment.style, segment.control)

    return CleanConsole(file=verbatim(stream), **options)


class OutputLost(Exception):
    """Standard output cannot be written any more; the cause is the system's error."""


class LastingStream:
    """A text stream that falls silent when it cannot be written any more.

    The reader of a pipe may leave, the disk under a log may fill up, a terminal may be closed.

    Args:
        stream: to write to; other attributes than those below are its own.
        ends: raise `OutputLost` the first time, for a command that has nothing else to do.

    Attributes:
        failure: why nothing is written any more, or None.
    """

    def __init__(self, stream: TextIO, *, ends: bool = False) -> None:
        self._stream, self._ends = stream, ends
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, or do nothing if that has failed before."""
        if self.failure is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._fall_silent(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing if that has failed before."""
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fall_silent(error)

    def _fall_silent(self, error: OSError) -> None:
        self.failure = error
        with contextlib.suppress(OSError):  # what is still buffered is written when Python exits
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        if self._ends:
            raise OutputLost from error

    def __getattr__(self, name: str) -> Any:
        """Everything else is the wrapped stream's."""
        return getattr(self._stream, name)
