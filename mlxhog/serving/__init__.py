"""Read the weights of a run while it trains, or those of a checkpoint, by the same interface.

mode                 weights of a run that trains                        they change
double_buffer        the copy that the run published last                between tokens
pinned_per_sequence  the same                                            between sequences
racy                 the shared parameters while workers write them      between tokens
"""

from dataclasses import dataclass
from typing import Any

from mlxhog.base.workers import BACKEND_WORDS
from mlxhog.config.options import option

READ_MODES = ("double_buffer", "pinned_per_sequence", "racy")
"""The default first."""

CHECKPOINT = "checkpoint"
MODES = (*READ_MODES, CHECKPOINT)
"""Values of --mode: a read mode, or the newest checkpoint, even if the run trains."""


WAIT_S = 60.0
"""Longest wait for a run that is starting, in seconds."""


SEQ_LEN = 512
"""Tokens of a sequence in which text is scored, where no training says another number."""

BACKEND = "auto"
"""The backend of `load` and of every command that computes a trained model, unless it is named."""


def backend_option() -> Any:  # as `option`
    """Declare the option --backend."""
    return option(
        BACKEND,
        "backend; auto is MLX on a Mac (to write: on its CPU if that is faster), torch elsewhere",
        choices=BACKEND_WORDS,
    )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the commands that write text read a model: the arguments of `mlxhog.load`."""

    backend: str = backend_option()
    weights: str = option(
        "float32", "format of the weights in memory; 8bit and 4bit are for mlx backends",
        choices=("float32", "bfloat16", "8bit", "4bit"),
    )  # fmt: skip
    mode: str = option(
        READ_MODES[0],
        "weights of a run that trains: its last published copy, one such copy for the whole "
        "answer, unsynchronised reads, or its newest checkpoint",
        choices=MODES,
    )
    wait: float = option(WAIT_S, "longest wait for a run that is starting", unit="s", low=0)
    runs_dir: str = option("runs", "folder that holds the runs")
