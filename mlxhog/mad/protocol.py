"""How a candidate is trained and scored: the protocol of the benchmark with its fixes.

Every fix has a switch back, so that numbers of the reference (athms/mad-lab) can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mlxhog.config.options import option, options
from mlxhog.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to train and score. Values are converted and checked when the object is made.

    Raises:
        ConfigError: naming every wrong value at once.
    """

    lr: float = option(5e-4, "step size of AdamW", above=0, aliases=("learning_rate",))
    weight_decay: float = option(0.0, "decay of weight matrices, decoupled", low=0)
    beta2: float = option(0.999, "AdamW: decay of the second moment", low=0, below=1)
    clip: float = option(0.0, "largest gradient norm; 0 switches clipping off", low=0)
    schedule: str = option(
        "cosine",
        "step size over the run: to lr-floor, stepped every epoch; or as the reference's code runs",
        choices=("cosine", "constant"),
    )
    lr_floor: float = option(1e-6, "cosine: step size at the end", low=0)
    batch_size: int = option(128, "sequences in one step", low=1)
    steps: int | None = option(None, "end after this many steps", low=1, aliases=("iters",))
    epochs: int | None = option(None, "end after this many passes over the training rows", low=1)
    eval_every: int | None = option(
        None,
        "steps between evaluations; an epoch, but at least 25 steps, where none is given",
        low=1,
    )
    stop_accuracy: float = option(
        0.999, "end as soon as acc_token of the test rows reaches this; above 1 is never", above=0
    )
    patience: int | None = option(
        None, "end after this many evaluations without a better one", low=1, none="off"
    )
    labels: str = option(
        "dense",
        "recall tasks train on every position, or on those that are scored",
        choices=("dense", "scored"),
    )
    select: str = option(
        "test", "rows whose accuracy decides between runs", choices=("test", "val")
    )
    wd_all: bool = option(False, "compat: decay norms, biases and embeddings, too")
    fuzzy_compat: bool = option(
        False, "compat: fuzzy recall may end with a query that cannot be answered"
    )

    def __post_init__(self) -> None:
        """Convert and check every value."""
        problems = []
        for name, spec in options(type(self)).items():
            try:
                object.__setattr__(self, name, spec.convert(getattr(self, name)))
            except ValueError as error:
                problems.append(f"{name} {error}")
        if not problems and self.steps is not None and self.epochs is not None:
            problems.append("steps and epochs are both given; leave one out")
        if problems:
            raise ConfigError("\n".join(problems))


WORKER_OPTIONS: Final = (
    "strategy",
    "predict",
    "async_after",
    "average_every",
    "second_moment",
    "read",
    "write",
    "gpu_write",
    "kernels",
    "force",
    "restarts",
    "heartbeat_timeout_s",
    "max_nonfinite",
    "on_torn",
)
"""Options of `mlxhog train` that say how the workers of one candidate train together.

With one worker there is nothing to choose: every strategy is the same then.
"""
