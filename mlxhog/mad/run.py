"""One training run of one candidate: its plan, whose digest is its key, and its record."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any

from mlxhog.base import typed
from mlxhog.config.plugins import KEY, Plugin
from mlxhog.errors import ConfigError, shown
from mlxhog.mad import tasks
from mlxhog.mad.options import Recipe, sweep_label
from mlxhog.mad.tasks.dataset import ByLength
from mlxhog.mad.tasks.task import GENERATOR_VERSION
from mlxhog.models import families
from mlxhog.models.layers import at_width, to_dict
from mlxhog.models.layers.layer import Layer
from mlxhog.models.mad.config import MADConfig

version = cache(metadata.version)  # which reads a file


def params(layers: Iterable[Layer], d: int) -> int:
    """Return the number of parameters of layers at width d, each with its norm.

    It excludes embedding, head, positions and the decoder of the auto-encoder: they are the same in
    every candidate, and on large vocabularies they would hide the difference.
    """
    return sum(d + sum(spec.size for spec in layer.param_spec(d)) for layer in layers)


def state(layers: Iterable[Layer], d: int, length: int) -> int:
    """Return the numbers that layers of width d keep per sequence after `length` tokens."""
    return sum(sum(layer.state(d, length).values()) for layer in layers)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A candidate on one task config, with one recipe and one seed."""

    task: str  # full name, such as "in-context-recall"
    # every setting of the task; `select` val draws validation rows, `fuzzy_compat` sets its own
    settings: Mapping[str, Any]
    layers: tuple[Layer, ...]  # the flat list
    dim: int  # width d
    recipe: Recipe  # of training and scoring
    seed: int  # of the data, the initial values and the order of batches
    position: str = "none"  # positional embedding, one of `models.mad.config.POSITIONS`
    # backends of its workers, such as "torch:cpu" or "mlx:cpu,torch:cpu"
    workers: str = "torch:cpu"
    threads: int = 1  # of each worker
    plugins: tuple[Plugin, ...] = ()  # the user's files of tasks and layers
    # canonical string of the candidate in its study; a task config may have a width of its own, so
    # that `layers` have other hyperparameters. It is not part of the key, nor is `label`.
    candidate: str = ""
    label: str = ""  # of the task config in its suite, such as "baseline" or "vocab=32"

    def __post_init__(self) -> None:
        """Set what layers derive from the width, and settings that follow from the recipe."""
        settings = dict(self.settings)
        if self.recipe.select == "val" and not settings.get("val_rows"):
            settings["val_rows"] = settings.get("test_rows", tasks.Task.test_rows)
        if self.recipe.fuzzy_compat and "fuzzy_compat" in settings:
            settings["fuzzy_compat"] = True
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "layers", at_width(self.layers, self.dim))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON takes, in a fixed order."""
        plugins = [asdict(plugin) for plugin in self.plugins]
        return {
            "task": self.task,
            "settings": dict(sorted(self.settings.items())),
            "layers": [to_dict(layer) for layer in self.layers],
            "dim": self.dim,
            "position": self.position,
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "workers": self.workers,
            "threads": self.threads,
            **({KEY: plugins} if plugins else {}),
        }

    def key(self) -> str:
        """Return 16 hexadecimal digits, a hash of every number and of the code's version.

        Neither the execution of a run nor the place of a plugin changes it.
        """
        values = self.to_dict()
        if self.plugins:
            values[KEY] = [plugin.digest for plugin in self.plugins]
        stamp = {"generator": GENERATOR_VERSION, "version": version("mlxhog"), **values}
        text = json.dumps(stamp, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def record(self, status: str, **numbers: Any) -> "CandidateRecord":
        """Return the record of this run, which ends now and here, with its numbers."""
        model = self.model()
        return CandidateRecord(
            status=status,
            **numbers,
            key=self.key(),
            candidate=self.candidate,
            config=self.to_dict(),
            label=self.label,
            params=families.param_count(model),
            state=state(self.layers, self.dim, model.max_length),
            host=platform.node(),
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )

    def model(self) -> MADConfig:
        """Return the candidate as a model for its task.

        Raises:
            ConfigError: a setting of the task, or a size, is impossible, or the training would
                leave out positions of the scored rows.
        """
        task = tasks.find(self.task)
        settings = tasks.resolve(task.name, self.settings)
        if self.position == "learned" and settings.test_length > settings.length:
            raise ConfigError(
                f"position is learned, and {task.name} trains on rows of {settings.length} tokens "
                f"and scores rows of {settings.test_length}: no row trains the positions from "
                f"{settings.length} on; choose position none or sincos"
            )
        return MADConfig(
            vocab_size=settings.vocab,
            hidden_size=self.dim,
            layers=self.layers,
            max_length=max(settings.length, settings.test_length),
            position=self.position,
            backbone=task.backbone,
        )


@dataclass(frozen=True, kw_only=True)
class EvalPoint:
    """One evaluation of a run; its loss is None if none was finite."""

    step: int
    seconds: float
    loss: float | None
    acc_token: float
    acc_macro: float


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is read of a stored plan."""

    task: str
    seed: int
    dim: int
    recipe: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Rates:
    lr: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True, kw_only=True)
class CandidateRecord:
    """A run that ended: its result, and its plan as plain values; a line of `runs.jsonl`."""

    # "done", "diverged" (it scores 0), "pruned", "failed" or "interrupted"
    status: str
    steps: int = 0  # taken
    seconds: float = 0.0  # from the first step to the last evaluation
    # mean training loss in nats since the evaluation before the last; None if none was finite
    loss: float | None = None
    acc_token: float = 0.0  # share of the scored test positions with the right prediction
    acc_macro: float = 0.0  # mean recall over classes, see `tasks.dataset`; the base of the score
    val_token: float | None = None  # as acc_token, of the validation rows; None without them
    val_macro: float | None = None  # likewise
    # ends of the parts of longer test rows, with the acc_token in each part; else ()
    by_length: ByLength = ()
    best_achievable: float = 1.0  # the best accuracy that these rows permit
    # step of the first evaluation at which the task is solved; None without one
    solved: int | None = None
    curve: tuple[EvalPoint, ...] = ()  # every evaluation; a study has it in a file of its own
    # of suite lm: bits per byte, tokens/s, bytes, ... by name, see `training.text`
    measures: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""  # of the failure, else ""

    key: str  # of the run, see `RunConfig.key`
    candidate: str  # canonical string of the layers
    config: Mapping[str, Any]  # of the run, see `RunConfig.to_dict`
    label: str  # of the task config, such as "baseline" or "vocab=32"
    params: int  # elements of all parameters of the model
    state: int  # numbers kept per sequence at the task's length, in all layers
    host: str  # name of its machine
    at: str  # its end, ISO 8601 in UTC

    def check(self) -> None:
        """Raise ValueError, with its name, if a value of a stored record is impossible."""
        typed.read(_Rates, typed.read(_Plan, self.config).recipe)
        try:
            datetime.fromisoformat(self.at).timestamp()
        except (ValueError, OverflowError):
            raise ValueError(f"at is {shown(self.at)}; wanted a time in ISO 8601") from None

    @property
    def task(self) -> str:
        """Full name of the task."""
        return str(self.config["task"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config["seed"])

    @property
    def rung(self) -> int:
        """Number of its rung in a study of suite lm, from 0 on."""
        return int(self.config.get("settings", {}).get("rung", 0))

    @property
    def title(self) -> str:
        """Name of the run within its candidate."""
        return f"{self.task} {self.label}, {sweep_label(self.config['recipe'])}, seed {self.seed}"


@dataclass(frozen=True)
class Callbacks:
    """Calls of the process that trains, between two steps; by default they do nothing."""

    # at least once per step, as a sign of life. It may raise KeyboardInterrupt: the first one ends
    # the run after one more evaluation, the second one at once
    beat: Callable[[], None] = lambda: None
    on_eval: Callable[[EvalPoint], object] = lambda point: None  # after each evaluation
    # whether to end the run early; at rungs only, after `on_eval`
    should_prune: Callable[[EvalPoint], bool] = lambda point: False
