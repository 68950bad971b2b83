"""Ends what Ray leaves behind when the scheduler that started it is killed.

Most of Ray's processes follow the one that started them; two of its agents try for minutes to tell
a server that is gone. A process of ours outlives the scheduler just long enough to end them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection

from mlxhog.arena.process import process_start_time
from mlxhog.machine.interrupts import SIGNALS
from mlxhog.machine.processes import spawn


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """End every process below this one, should it die before the block ends.

    Enter it when they are up: those that come later are not known.
    """
    ours, theirs = get_context("spawn").Pipe()
    process = spawn(_main, (theirs, _below(os.getpid())), name="mlxhog-ray-guard")
    theirs.close()
    try:
        yield
    finally:
        ours.close()
        process.join()


def _below(pid: int) -> list[tuple[int, int]]:
    """Processes below one, as id and start time."""
    told = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    parents = [tuple(map(int, line.split())) for line in told.stdout.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, own in parents if own == parent]
    return [(one, start) for one in found[1:] if (start := process_start_time(one))]


def _main(pipe: Connection, watched: list[tuple[int, int]]) -> None:
    """Entry point of the guard: wait for the block to end, or for the parent to die."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None
    connection.wait([pipe, parent.sentinel])
    if connection.wait([parent.sentinel], 0):
        for pid, start in watched:
            if process_start_time(pid) == start:  # the number may be another's by now
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
