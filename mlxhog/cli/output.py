"""What commands have in common: JSON and tables on standard output, and an end by SIGTERM."""

import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxhog.report.table import Section


def print_json(value: object) -> None:
    """Print a value that may hold NumPy scalars and paths, as one line of JSON."""
    from mlxhog.files import plain_json  # which imports NumPy

    print(plain_json.dumps(value).decode())


def print_sections(sections: "Iterable[Section]") -> None:
    """Print tables and notes, in color on a terminal that has it."""
    from mlxhog.report.table import show
    from mlxhog.report.views import may_redraw

    show(sections, sys.stdout, plain=not may_redraw(sys.stdout))


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does, so that it leaves nothing behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
