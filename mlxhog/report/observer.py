"""Which view of a run fits where the output goes."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol, TextIO

from mlxhog.report.metrics import Progress
from mlxhog.report.plain import PlainLines
from mlxhog.report.printable import console
from mlxhog.report.views import may_redraw


class Observer(Protocol):
    """Something that is told how a run goes, about twice a second."""

    def __call__(self, progress: Progress) -> None:
        """Show the progress; must not block."""


def observer(
    stream: TextIO, *, quiet: bool = False, environ: Mapping[str, str] = os.environ
) -> AbstractContextManager[Observer]:
    """Return a live table where it may be redrawn, and plain lines elsewhere; see `may_redraw`."""
    if not may_redraw(stream, quiet=quiet, environ=environ):
        return PlainLines(stream)
    from mlxhog.report.terminal import LiveTable  # rich takes 50 ms, which a pipe need not pay

    return LiveTable(console(stream))
