"""Load the weights of a run while it trains, or of a checkpoint, through one interface.

mode                 weights of a run that trains                        they change
double_buffer        the last published snapshot                         between tokens
pinned_per_sequence  the last published snapshot                         between sequences
racy                 the shared parameters while workers write them      between tokens
"""

from dataclasses import dataclass
from typing import Any

from mlxhog.base.workers import BACKEND_NAMES
from mlxhog.config.options import option

READ_MODES = ("double_buffer", "pinned_per_sequence", "racy")  # the default first

CHECKPOINT = "checkpoint"
MODES = (*READ_MODES, CHECKPOINT)
"""Values of --mode: a read mode, or the newest checkpoint, even if the run trains."""

WAIT_S = 60.0  # longest wait for a run that is starting, in seconds
SEQ_LEN = 512  # default length in tokens of the sequences in which text is scored
BACKEND = "auto"  # default backend of `load` and of every command that computes a trained model


def backend_option() -> Any:  # as `option`
    """Declare the option --backend."""
    return option(
        BACKEND,
        "backend; auto is torch, or on a Mac MLX, which generates on the CPU where that is faster",
        choices=BACKEND_NAMES,
    )


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of `mlxhog.load`, which all commands that generate text share."""

    backend: str = backend_option()
    weights: str = option(
        "float32",
        "format of the weights in memory; for a run's adapter float32 is its --base-weights",
        choices=("float32", "bfloat16", "8bit", "4bit"),
    )  # fmt: skip
    mode: str = option(
        READ_MODES[0],
        "weights of a run that trains: its last published snapshot, one snapshot for the whole "
        "answer, unsynchronized reads, or its newest checkpoint",
        choices=MODES,
    )
    wait: float = option(WAIT_S, "longest wait for a run that is starting", unit="s", low=0)
    runs_dir: str = option("runs", "folder that holds the runs", is_path=True)
