"""Options of `mlxhog mad`: training and scoring of a candidate, and execution of a study."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mlxhog.base.quantities import Interval
from mlxhog.config.components import OPTIMIZERS, STRATEGIES
from mlxhog.config.options import is_set, option, options
from mlxhog.config.sources import ConfigBase
from mlxhog.errors import ConfigError
from mlxhog.optim import DEFAULT, AdamW, Decayed, OptimizerChoice

DEFAULT_SEED: Final = 12345
"""Of a run of a candidate, and the first of several."""

PUBLISHED: Final = AdamW(beta2=0.999, weight_decay=0.0)
"""The benchmark's optimizer, at one of its points; suites `lite` and `full` have it."""


@dataclass(frozen=True, kw_only=True, init=False)
class Protocol(ConfigBase):
    """Training and scoring of a candidate: the optimizer of `mlxhog train`, else the benchmark's.

    Numbers of the optimizer have their flat names as shorthand: `Protocol(beta2=0.99)`. A switch
    undoes each fix, for comparison with numbers of the reference (athms/mad-lab).

    Raises:
        ConfigError: naming every wrong value at once.
    """

    optimizer: OptimizerChoice = option(
        DEFAULT.name,
        f"update rule, as in mlxhog train; the benchmark's is {PUBLISHED}",
        kind=OPTIMIZERS,
    )
    lr: float | None = option(
        None,
        "peak learning rate; auto: the optimizer's default, scaled by width, vocabulary and "
        "strategy",
        above=0, aliases=("learning_rate",), none="auto",
    )  # fmt: skip
    clip: float = option(0.0, "clip the gradient norm to this value; 0 disables clipping", low=0)
    schedule: str = option(
        "cosine",
        "learning rate over the run: falling to min-lr, stepped every epoch; or constant, as in "
        "the reference's code",
        choices=("cosine", "constant"),
    )
    min_lr: float = option(1e-6, "cosine: minimum learning rate, reached at the end", low=0)
    batch_size: int = option(128, "sequences in one step", low=1)
    steps: int | None = option(None, "end after this many steps", low=1, aliases=("iters",))
    epochs: int | None = option(None, "stop after this number of epochs", low=1)
    eval_every: int | None = option(
        None, "steps between evaluations; by default an epoch, but at least 25 steps", low=1
    )
    stop_accuracy: float = option(
        0.999,
        "end as soon as acc_token of the selecting rows reaches this; above 1 is never",
        above=0,
    )
    patience: int | None = option(
        None, "end after this many evaluations without an improvement", low=1, none="off"
    )
    labels: str = option(
        "dense",
        "recall tasks train on every position, or on the scored ones",
        choices=("dense", "scored"),
    )
    select: str = option(
        "test", "rows whose accuracy selects between runs", choices=("test", "val")
    )
    wd_all: bool = option(False, "compat: also decay norms, biases and embeddings")
    fuzzy_compat: bool = option(
        False, "compat: fuzzy recall may end with a query without an answer"
    )

    def __post_init__(self) -> None:
        """Check the values together."""
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("steps and epochs are both given; leave one out")
        if self.schedule != "cosine" and is_set(self, "min_lr"):
            raise ConfigError(f"--min-lr is for schedule=cosine, not {self.schedule}; leave it out")

    @property
    def weight_decay(self) -> float:
        """Weight decay of the optimizer; 0 if it has none."""
        return float(getattr(self.optimizer, "weight_decay", 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; the optimizer's weight decay stands apart from its other numbers."""
        values = {name: getattr(self, name) for name in options(type(self))}
        optimizer = values["optimizer"]
        if isinstance(optimizer, Decayed):
            values["weight_decay"] = optimizer.weight_decay
            optimizer = replace(optimizer, weight_decay=PUBLISHED.weight_decay)
        return values | {"optimizer": str(optimizer)}


PROTOCOL: Final = (*options(Protocol), "weight_decay", "beta2", "moments")
"""Flags of the protocol: its options, and some numbers of the optimizer by their flat names."""


def point_name(protocol: Mapping[str, Any]) -> str:
    """Return the optimizer point of a protocol as plain values: "lr 2e-03 wd 0.1"."""
    lr, decay = protocol.get("lr"), protocol.get("weight_decay", 0)
    rate = "auto" if lr is None else f"{lr:.0e}"
    if lr is not None and float(rate) != lr:
        rate = f"{lr:g}"
    return f"lr {rate}" + (f" wd {decay:g}" if decay else "")


def worker_options() -> tuple[str, ...]:
    """Return the options of `mlxhog train` for several workers of one candidate.

    With one worker they have no effect. Numbers of strategies are there by their flat names, those
    of the user's own strategies, too.
    """
    numbers = STRATEGIES.hyperparameters().items()
    return (
        *("strategy", "read", "write", "gpu_write", "kernels", "safety_checks", "restarts"),
        "heartbeat_timeout",
        *(name for name, number in numbers if not number.train_only),
    )


# -- execution -------------------------------------------------------------------------------------

_GROUP = "execution; it may change from session to session"


@dataclass(frozen=True, kw_only=True, init=False)
class ExecutionConfig(ConfigBase):
    """Execution of a session of a study; no option changes the results.

    Raises:
        ConfigError: naming every wrong value at once.
    """

    parallel: int | None = option(
        None, "candidates at once; auto: a core for each, and one free core", low=1, none="auto",
        group=_GROUP,
    )  # fmt: skip
    executor: str = option(
        "local", "processes of this command, or Ray (extra [ray])",
        choices=("local", "ray"), group=_GROUP,
    )  # fmt: skip
    ray_address: str | None = option(
        None, "join this Ray cluster, such as auto or head:6379, instead of starting Ray here",
        group=_GROUP,
    )  # fmt: skip
    budget: Interval = option(
        Interval(), "begin no candidate after this number (40), or no run after this time (2h), of "
        "the whole study", unit="candidates", group=_GROUP,
    )  # fmt: skip
    studies_dir: str = option("studies", "folder that holds the studies", group=_GROUP)

    def __post_init__(self) -> None:
        """Check the values together."""
        if self.ray_address is not None and self.executor != "ray":
            raise ConfigError("--ray-address is given without --executor ray; add it")
