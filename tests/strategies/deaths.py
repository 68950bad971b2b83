"""Deaths at any line of a strategy: a trace function that raises where SIGKILL would strike."""

import sys
from collections import Counter
from functools import partial
from pathlib import Path

from mlxhog import strategies

FOLDERS = (str(Path(strategies.__file__).parent),)


class Died(BaseException):
    """Stands for SIGKILL: nothing behind the line where it is raised runs."""


def _traced(work, on_line, folders=FOLDERS):
    """Do some work, and call `on_line` with each place that is about to run; whether it died."""

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(folders):
            return None
        if event == "line":
            on_line((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        work()
    except Died:
        return True
    finally:
        sys.settrace(None)
    return False


def places(work, folders=FOLDERS):
    """Lines that some work executes, as (file, number), and how often."""
    counts = Counter()
    _traced(work, lambda place: counts.update([place]), folders)
    return counts


def dies(work, place, times=1, folders=FOLDERS):
    """Do some work, and die where a place is about to run for the n-th time; whether it died."""
    left = times

    def on_line(here):
        nonlocal left
        if here == place:
            left -= 1
            if not left:
                raise Died

    return _traced(work, on_line, folders)


def dies_with(work, others, *arguments):
    """Do some work, and die at the next line once others have died; whether it died."""

    def on_line(here):
        if others.is_set():
            raise Died

    return _traced(partial(work, *arguments), on_line)
