"""Output of commands: JSON, tables, the name of a run; and their end by SIGTERM."""

import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mlxhog.base.paths import path_from_here
from mlxhog.cli.flags import RunFolder

if TYPE_CHECKING:
    from mlxhog.report.table import Section


def print_json(value: object) -> None:
    """Print a value that may hold NumPy scalars and paths, as one line of JSON."""
    from mlxhog.base import plain_json  # it imports NumPy

    print(plain_json.dumps(value).decode())


def print_sections(sections: "Iterable[Section]") -> None:
    """Print tables and notes, with colors on a terminal that has them."""
    from mlxhog.report.table import show
    from mlxhog.report.views import may_redraw

    show(sections, sys.stdout, plain=not may_redraw(sys.stdout))


def run_word(directory: Path) -> str:
    """Return the shortest name of a run for every command, without `--out`.

    Args:
        directory: of the run, absolute.

    Returns:
        Its name if it is in the default folder of runs, else its path; not quoted.
    """
    if directory.parent == Path(RunFolder().out).absolute():
        return directory.name
    return str(path_from_here(directory))


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does, so that its cleanup runs."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
