"""Which view of a run fits where the output goes."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol, TextIO

from mlxhog.metrics import Progress
from mlxhog.report.plain import PlainLines


class Observer(Protocol):
    """Something that is told how a run goes, about twice a second."""

    def __call__(self, progress: Progress) -> None:
        """Show the progress; must not block."""


def observer(
    stream: TextIO, *, quiet: bool = False, environ: Mapping[str, str] = os.environ
) -> AbstractContextManager[Observer]:
    """Return a live table for a terminal, and plain lines for everything else.

    Args:
        stream: where progress goes, usually stderr.
        quiet: plain lines even on a terminal.
        environ: `NO_COLOR` and `TERM=dumb` ask for plain lines too.
    """
    plain = quiet or not stream.isatty()
    if plain or environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return PlainLines(stream)
    # rich takes 50 ms to import, which a command in a pipe need not pay
    from rich.console import Console

    from mlxhog.report.terminal import LiveTable

    return LiveTable(Console(file=stream))
