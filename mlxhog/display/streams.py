"""Standard streams without control characters.

The name of a tensor, a file or a study may contain control characters that move a terminal's
cursor, change its title or type into it. So the command line prints through a `PrintableStream`,
and rich through `console`, which cleans text before it is colored. JSON escapes such characters.
"""

from __future__ import annotations

import contextlib
import re
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from mlxhog.base.output import StreamOver, lasting

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100  # columns of text for a pipe, and the largest number of columns in a window
_KEPT = "\n\t\u200c\u200d"  # in an answer: line end, tab, ZERO WIDTH NON-JOINER, ZERO WIDTH JOINER


def printable(text: str) -> str:
    """Replace control characters by spaces; a model of bytes may write some."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " for c in text)


def printable_lines(text: str) -> str:
    """Clean a text as `printable`, but keep line ends."""
    return "\n".join(map(printable, text.split("\n")))


def printable_answer(text: str) -> str:
    """Clean a model's text as `printable_lines`, but keep tabs, Unicode's blanks and joiners."""
    return "".join(
        c if c.isprintable() or c in _KEPT or unicodedata.category(c) == "Zs" else " " for c in text
    )


def wrapped(text: str, width: int = WIDTH) -> list[str]:
    """Break lines at two spaces, else between words, and indent further lines by two columns.

    Indentation is kept. No line is wider than `width`, unless one word is.
    """
    if "\n" in text:
        return [part for line in text.split("\n") for part in wrapped(line, width)]
    text = printable(text).rstrip()
    if len(text) <= width:
        return [text]
    indent = " " * (len(text) - len(text.lstrip()))
    return _filled(indent, re.split(r" {2,}", text.strip()), "  ", f"{indent}  ", width)


def in_columns(name: str, parts: Iterable[str], width: int) -> list[str]:
    """Put comma-separated parts after a name; lines break between parts if possible.

    >>> in_columns("made: ", ["lr 0.003", "time 1 h"], 16)
    ['made: lr 0.003,', '      time 1 h']
    """
    return _filled(name, map(printable, parts), ", ", " " * len(name), width)


def _filled(first: str, parts: Iterable[str], gap: str, rest: str, width: int) -> list[str]:
    """Fill lines that begin with `first` and `rest`; only a part longer than a line breaks."""
    glue, room = "\0", max(width - len(rest), 16)
    whole = gap.join(part if len(part) > room else part.replace(" ", glue) for part in parts)
    lines = textwrap.wrap(
        whole, room + len(rest), initial_indent=first, subsequent_indent=rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace(glue, " ") for line in lines]


class PrintableStream(StreamOver):
    """A text stream that removes control characters except newlines."""

    def write(self, text: str) -> int:
        """Write cleaned text; return the number of its characters."""
        if self._stream is not None:
            self._stream.write(printable_lines(text))
        return len(text)


def verbatim(stream: TextIO) -> TextIO:
    """Return the stream below a `PrintableStream`, for data."""
    return cast(TextIO, stream._stream) if isinstance(stream, PrintableStream) else stream


@contextlib.contextmanager
def printable_output() -> Iterator[None]:
    """Clean the output of this process to stdout and stderr."""
    # PrintableStream passes on all methods that it does not define.
    out, err = (cast(TextIO, PrintableStream(verbatim(s))) for s in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def console(stream: object) -> Console:
    """Return a rich console that cleans text before it colors it."""
    from rich.console import Console  # takes 50 ms, so only colored output imports it
    from rich.segment import Segment

    class CleanConsole(Console):
        def render(self, *args: Any, **kwargs: Any) -> Iterator[Segment]:
            for segment in super().render(*args, **kwargs):
                text = segment.text if segment.control else printable_lines(segment.text)
                yield Segment(text, segment.style, segment.control)

    return CleanConsole(file=cast(TextIO, lasting(stream)))
