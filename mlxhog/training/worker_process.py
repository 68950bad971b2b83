"""The process of a worker: how it begins, reports and ends.

Besides its records, a worker reports to the supervisor by notices in its log, the log's last line
and its exit code. Notices are lines for the user; they appear among a run's first lines.

macOS ends the work of a GPU worker that keeps the display waiting. MLX 0.32 raises Metal's error
at the next wait for the GPU; older versions abort the process on a thread of Metal, where no
error can be caught. torch does not look, so its backend does (`TorchBackend`). A process does not
recover from either. The remedy is less work at a time, so the worker restarts with half the
micro-batch; the sequences of its ticket, and so the gradient, stay the same.
Sources: mlx, `CommandEncoder::commit` and `Event::check_error`; mlx issue 3267 (open), where users
report that the hints help; pytorch issue 193571.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from mlxhog.base.processes import FAULTS, end_by
from mlxhog.errors import LostGPU, MlxhogError
from mlxhog.training.job import Job

LOST_GPU_EXIT_CODE = 75  # of a worker whose framework reported the loss: EX_TEMPFAIL
MOST_HALVINGS = 3
HINTS = (
    "a shorter --seq-len, the environment variable MLX_MAX_OPS_PER_BUFFER=8, or a display that is "
    "off may help"
)
_NOTICE = "notice: "
_METAL_SAYS = "Command buffer execution failed"


def main(pipe: Connection, job: Job) -> None:
    """Entry point of the spawned process; ends it with the error's exit code.

    If the run changes its strategy, `pipe` brings another job.
    """
    sys.stdout.flush()
    try:  # `TorchBackend` reads it; if its folder is gone, output to it is dropped
        log = job.log.open("a+", buffering=1)
    except OSError:
        log = open(os.devnull, "w")
    with log as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            from mlxhog.training.worker import run  # which the supervisor does not load

            run(pipe, job)
        except FAULTS as fault:
            end_by(fault)
        except (MlxhogError, RuntimeError) as error:
            if is_lost_gpu(error):
                code = LOST_GPU_EXIT_CODE
            elif isinstance(error, MlxhogError):
                code = error.exit_code
            else:
                raise
            with suppress(OSError):  # the disk of the log may be full
                print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(code)


def leave_notice(text: str) -> None:
    """Write a notice to the worker's log."""
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


def is_lost_gpu(error: BaseException) -> bool:
    """Whether an error or its cause is Metal's error of unfinished work."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LostGPU) or _METAL_SAYS in str(cause):
            return True
        cause = cause.__cause__
    return False
