"""Messages of a worker to its supervisor: notices in its log, its last line, its exit code.

Notices are lines of the log that the user should read; the supervisor passes them on once the
worker runs, so they stand among a run's first lines.

macOS ends the work of a GPU worker that keeps the display waiting. MLX 0.32 raises what Metal says
of it at the next wait for the GPU; older ones, and other libraries, abort the process on a thread
of Metal's, where nothing can be caught. A process to which either happened does not recover. Less
work at a time is the remedy, so the worker comes back with half the micro-batch; the sequences of
its ticket, and so the gradient, stay the same.
Source: mlx, `CommandEncoder::commit` and `Event::check_error`; mlx issue 3267 (open), where users
report that the hints help.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from mlxhog.arena.worker_pool import last_lines
from mlxhog.machine.workers import GPU_BACKENDS

_NOTICE = "notice: "
LOST_GPU_EXIT_CODE = 75  # of a worker that heard it: like EX_TEMPFAIL, which other programs use so
MOST_HALVINGS = 3
HINTS = (
    "a shorter --seq-len, the environment variable MLX_MAX_OPS_PER_BUFFER=8, a display that is "
    "off, or AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 may help"
)
_METAL_SAYS = "Command buffer execution failed"


def leave_notice(text: str) -> None:
    """Leave a notice, from a worker."""
    with suppress(OSError):  # the disk of the log may be full
        print(f"{_NOTICE}{text}", flush=True)


def read_notices(log: Path, since: int) -> list[str]:
    """The notices in a worker's log from byte `since` on."""
    if not log.exists():
        return []
    with log.open("rb") as stream:
        stream.seek(since)
        lines = stream.read().decode(errors="replace").splitlines()
    return [line.removeprefix(_NOTICE) for line in lines if line.startswith(_NOTICE)]


def last_line(log: Path) -> str:
    """The last line of a worker's log."""
    with log.open("rb") if log.exists() else BytesIO() as output:
        return last_lines(output)[-1]


def is_lost_gpu(error: BaseException) -> bool:
    """Whether an error, or what caused it, is Metal's of work that it did not finish."""
    cause: BaseException | None = error
    while cause is not None:
        if _METAL_SAYS in str(cause):
            return True
        cause = cause.__cause__
    return False


def ended_by_watchdog(backend: str, exit_code: int) -> bool:
    """Whether a worker seems to have been ended by the watchdog."""
    return backend in GPU_BACKENDS and exit_code in (-signal.SIGABRT, LOST_GPU_EXIT_CODE)


def lost_gpu_text(exit_code: int, last_words: str) -> str:
    """What happened to a worker that was ended."""
    return (
        f"lost its GPU ({last_words})"
        if exit_code == LOST_GPU_EXIT_CODE
        else "was aborted (SIGABRT)"
    )


def less_work_text(cause: str, micro_batch: int) -> str:
    """What the user reads when a worker comes back with less work at a time.

    Args:
        cause: who was ended, and how.
        micro_batch: sequences that it computes at a time from now on.
    """
    sequences = f"{micro_batch} sequence{'s' * (micro_batch > 1)}"
    return (
        f"{cause}, as happens on macOS when GPU work keeps the display waiting; it starts again "
        f"with micro-batches of {sequences}. If this happens again, {HINTS}"
    )
