"""Reading a run's weights while it trains, or a checkpoint's, in one way.

mode                 what a reader gets of a run that trains             they change
double_buffer        the copy that the run published last                between tokens
pinned_per_sequence  the same                                            between sequences
snapshot             the whole model between two updates                 between tokens
tensor               each tensor between two updates                     between tokens
racy                 the shared parameters as they are being written     between tokens
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from mlxhog.config.options import option

READ_MODES = ("double_buffer", "pinned_per_sequence", "snapshot", "tensor", "racy")
"""The default first."""

CHECKPOINT = "checkpoint"
MODES = (*READ_MODES, CHECKPOINT)
"""What commands take: a read mode, or the newest checkpoint of a run although it trains."""


WAIT_S = 60.0
"""How long a run that is being started is waited for."""


def wait_option() -> Any:  # as `option`
    """Declare the option of commands that wait."""
    return option(WAIT_S, "how long to wait for a run that is being started", unit="s", low=0)


_sampling = partial(option, group="sampling")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Options of an answer: how long it is, and how its tokens are drawn."""

    max_new_tokens: int = _sampling(
        200, "length of an answer", unit="tokens", low=1, aliases=("max_tokens",)
    )
    temperature: float = _sampling(
        0.8,
        "0 takes the likeliest token, 1 samples the model's own",
        low=0,
        high=100,
        aliases=("temp",),
    )
    top_p: float = _sampling(1.0, "sample from the likeliest tokens of this mass", above=0, high=1)
    top_k: int = _sampling(0, "sample from this many tokens; 0 from all", low=0)
    min_p: float = _sampling(0.0, "leave out tokens below this share of the best", low=0, high=1)
    repetition_penalty: float = _sampling(
        1.0,
        "above 1 makes tokens of prompt and answer less likely to come again",
        low=0.01,
        high=1000,
    )
    seed: int = _sampling(0, "the same seed gives the same text", low=0, high=2**32 - 1)
