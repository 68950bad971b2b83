"""GPU workers that macOS ends because their work keeps the display waiting.

Metal reports that on a thread of its own, where nothing can be caught: the process aborts. Less
work at a time is the remedy, so the worker comes back with half the micro-batch; the sequences of
its ticket, and so the gradient, stay the same.
Source: mlx issue 3267 (open); the hints are what users there report to help.
"""

from __future__ import annotations

import signal
from dataclasses import replace

from mlxhog.job import Job
from mlxhog.mix import GPU_BACKENDS

MOST_HALVINGS = 3
HINTS = (
    "a shorter --seq-len, the environment variable MLX_MAX_OPS_PER_BUFFER=8, a display that is "
    "off, or AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 may help"
)


def ended(backend: str, exit_code: int) -> bool:
    """Whether a worker seems to have been ended by the watchdog."""
    return backend in GPU_BACKENDS and exit_code == -signal.SIGABRT


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


def explain(what: str, micro_batch: int) -> str:
    """What the user reads when a worker comes back with less work at a time."""
    sequences = f"{micro_batch} sequence{'s' * (micro_batch > 1)}"
    return (
        f"{what} was aborted (SIGABRT), as macOS does when GPU work keeps the display waiting; it "
        f"starts again with micro-batches of {sequences}. If this happens again, {HINTS}"
    )
