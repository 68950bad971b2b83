"""GPU workers whose work macOS ends because it keeps the display waiting.

MLX 0.32 raises what Metal says of it at the next wait for the GPU; older ones, and other libraries,
abort the process on a thread of Metal's, where nothing can be caught. A process to which either
happened does not recover. Less work at a time is the remedy, so the worker comes back with half the
micro-batch; the sequences of its ticket, and so the gradient, stay the same.
Source: mlx, `CommandEncoder::commit` and `Event::check_error`; mlx issue 3267 (open), where users
report that the hints help.
"""

from __future__ import annotations

import signal
from dataclasses import replace

from mlxhog.machine.workers import GPU_BACKENDS
from mlxhog.training.job import Job

EXIT_CODE = 75  # of a worker that heard it: like EX_TEMPFAIL, which other programs use so
MOST_HALVINGS = 3
HINTS = (
    "a shorter --seq-len, the environment variable MLX_MAX_OPS_PER_BUFFER=8, a display that is "
    "off, or AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 may help"
)


_METAL_SAYS = "Command buffer execution failed"


def reported(error: BaseException) -> bool:
    """Whether an error, or what caused it, is Metal's of work that it did not finish."""
    cause: BaseException | None = error
    while cause is not None:
        if _METAL_SAYS in str(cause):
            return True
        cause = cause.__cause__
    return False


def ended(backend: str, exit_code: int) -> bool:
    """Whether a worker seems to have been ended by the watchdog."""
    return backend in GPU_BACKENDS and exit_code in (-signal.SIGABRT, EXIT_CODE)


def how(exit_code: int, last_words: str) -> str:
    """What happened to a worker that was ended."""
    return f"lost its GPU ({last_words})" if exit_code == EXIT_CODE else "was aborted (SIGABRT)"


def eased(job: Job, halvings: int) -> Job:
    """The same job with less work at a time: micro-batches and pieces halved so many times."""
    if not halvings:
        return job
    tokens = max(1, job.share.piece_tokens >> halvings)
    return replace(
        job,
        micro_batch=max(1, job.micro_batch >> halvings),
        share=replace(job.share, piece_tokens=tokens),
    )


def explain(ended: str, micro_batch: int) -> str:
    """What the user reads when a worker comes back with less work at a time.

    Args:
        ended: who was ended, and how.
        micro_batch: sequences that it computes at a time from now on.
    """
    sequences = f"{micro_batch} sequence{'s' * (micro_batch > 1)}"
    return (
        f"{ended}, as happens on macOS when GPU work keeps the display waiting; it starts again "
        f"with micro-batches of {sequences}. If this happens again, {HINTS}"
    )
