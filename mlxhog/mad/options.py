"""Options of `mlxhog mad`: training and scoring of a candidate, and execution of a study."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mlxhog.base.quantities import Interval
from mlxhog.config.components import OPTIMIZERS, STRATEGIES
from mlxhog.config.options import is_set, option, options
from mlxhog.config.sources import ConfigBase
from mlxhog.errors import ConfigError
from mlxhog.optim import DEFAULT, AdamW, Decayed, OptimizerComponent

DEFAULT_SEED: Final = 12345
"""Seed of a candidate's run, and the first of several."""

PUBLISHED: Final = AdamW(beta2=0.999, weight_decay=0.0)
"""The benchmark's optimizer, without weight decay; suites `lite` and `full` use it."""


@dataclass(frozen=True, kw_only=True, init=False)
class Recipe(ConfigBase):
    """Training and scoring of a candidate: the optimizer of `mlxhog train`, else the benchmark's.

    Hyperparameters of the optimizer are also keywords: `Recipe(beta2=0.99)`. A switch undoes each
    fix of the reference (athms/mad-lab), so that results compare.

    Raises:
        ConfigError: naming every wrong value at once.
    """

    optimizer: OptimizerComponent = option(
        DEFAULT.name,
        f"update rule, as in mlxhog train; the benchmark's is {PUBLISHED}",
        registry=OPTIMIZERS,
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
    batch_size: int = option(128, "sequences per step", low=1)
    steps: int | None = option(None, "end after this many steps", low=1, aliases=("iters",))
    epochs: int | None = option(None, "stop after this number of epochs", low=1)
    eval_every: int | None = option(
        None, "steps between evaluations; by default an epoch, 25 steps at least", low=1
    )
    stop_accuracy: float = option(
        0.999,
        "stop once token accuracy on the selection split reaches this; above 1: never",
        above=0,
    )
    patience: int | None = option(
        None,
        "early stopping: stop after this many evaluations without improvement",
        low=1,
        none="off",
    )
    labels: str = option(
        "dense",
        "recall tasks: loss on every position, or on the scored ones only",
        choices=("dense", "scored"),
    )
    select: str = option(
        "test", "split whose accuracy selects between runs", choices=("test", "val")
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
        """Return plain values; weight decay apart from the optimizer's other hyperparameters."""
        values = {name: getattr(self, name) for name in options(type(self))}
        optimizer = values["optimizer"]
        if isinstance(optimizer, Decayed):
            values["weight_decay"] = optimizer.weight_decay
            optimizer = replace(optimizer, weight_decay=PUBLISHED.weight_decay)
        return values | {"optimizer": str(optimizer)}


RECIPE: Final = (*options(Recipe), "weight_decay", "beta2", "moments")
"""Flags of the recipe: its options, and some hyperparameters of the optimizer."""


def sweep_label(recipe: Mapping[str, Any]) -> str:
    """Return the sweep entry of a recipe, as text: "lr 2e-03 wd 0.1"."""
    lr, decay = recipe.get("lr"), recipe.get("weight_decay", 0)
    rate = "auto" if lr is None else f"{lr:.0e}"
    if lr is not None and float(rate) != lr:
        rate = f"{lr:g}"
    return f"lr {rate}" + (f" wd {decay:g}" if decay else "")


def worker_options() -> tuple[str, ...]:
    """Return the options of `mlxhog train` for several workers of one candidate.

    With one worker they have no effect. Hyperparameters of strategies are among them, also those
    of the user's own strategies.
    """
    hyperparameters = STRATEGIES.hyperparameters().items()
    return (
        *("strategy", "read", "write", "gpu_write", "kernels", "safety_checks", "restarts"),
        "heartbeat_timeout",
        *(name for name, spec in hyperparameters if not spec.train_only),
    )


# -- execution -------------------------------------------------------------------------------------

_GROUP = "execution, which may change between sessions"


@dataclass(frozen=True, kw_only=True, init=False)
class ExecutionConfig(ConfigBase):
    """Execution of a session of a study; no option changes the results.

    Raises:
        ConfigError: naming every wrong value at once.
    """

    parallel: int | None = option(
        None, "candidates in parallel; auto: one per core, less one", low=1, none="auto",
        group=_GROUP,
    )  # fmt: skip
    executor: str = option(
        "local", "local processes, or Ray (extra [ray])",
        choices=("local", "ray"), group=_GROUP,
    )  # fmt: skip
    ray_address: str | None = option(
        None, "join this Ray cluster, such as auto or head:6379, instead of starting Ray here",
        group=_GROUP,
    )  # fmt: skip
    budget: Interval = option(
        Interval(), "budget of the whole study: candidates (40), or time (2h)", unit="candidates",
        group=_GROUP,
    )  # fmt: skip
    studies_dir: str = option("studies", "folder that holds the studies", group=_GROUP)

    def __post_init__(self) -> None:
        """Check the values together."""
        if self.ray_address is not None and self.executor != "ray":
            raise ConfigError("--ray-address is given without --executor ray; add it")
