"""Suites: task configs and a learning-rate sweep, on which an architecture is scored.

Sources: Poli et al. 2024, arXiv:2403.17844, and its code, for the grid of the six published tasks;
the modules of the other tasks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mlxhog.base.quantities import parse_count, parse_duration_s
from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.mad.options import PUBLISHED
from mlxhog.mad.tasks import BENCHMARK, find, resolve
from mlxhog.mad.tasks.automata import ORDERS
from mlxhog.mad.tasks.text import TEXT_TASK
from mlxhog.optim import DEFAULT


@dataclass(frozen=True)
class TaskConfig:
    """One task at one difficulty."""

    task: str  # full name
    settings: Mapping[str, Any]  # every setting of the task
    label: str  # the difference from the task's baseline, such as "vocab=32", or "baseline"
    # fields of the recipe that replace the suite's
    recipe: Mapping[str, Any] = field(default_factory=dict)
    dim: int | None = None  # width of a candidate on this task config; None is the suite's


@dataclass(frozen=True)
class Suite:
    """The task configs, sweep and recipe behind one score."""

    name: str  # one of `SUITES`
    task_configs: tuple[TaskConfig, ...]  # in the order of the tasks
    # lr and weight_decay of the runs on each task config; the best one counts
    sweep: tuple[Mapping[str, float | None], ...]
    # other fields of `Recipe`; the optimizer is the published one by default, so that scores
    # compare with earlier ones, whatever `mlxhog train` has
    recipe: Mapping[str, Any]
    dim: int = 128  # width of a candidate; its parameters and its state are counted at this width

    def __post_init__(self) -> None:
        """Set the optimizer."""
        object.__setattr__(self, "recipe", {"optimizer": PUBLISHED, **self.recipe})

    @property
    def runs(self) -> int:
        """Runs of one candidate with one seed."""
        return len(self.task_configs) * len(self.sweep)


# -- the published tasks ---------------------------------------------------------------------------

Axes = Mapping[str, Sequence[float]]

_RECALL: Axes = {
    "vocab": (32, 64, 128),
    "seq_len": (256, 512, 1024),
    "train_rows": (6400, 3200, 1600, 800),
}
_HARDER: Mapping[str, Axes] = {
    "in-context-recall": _RECALL,
    "fuzzy-in-context-recall": _RECALL,
    "noisy-in-context-recall": {**_RECALL, "vocab": (48, 80, 144), "frac_noise": (0.4, 0.6, 0.8)},
    "selective-copying": {**_RECALL, "seq_len": (512, 1024), "tokens_to_copy": (32, 64, 96)},
    "compression": {**_RECALL, "seq_len": (64, 128, 256)},
    "memorization": {"vocab": (512, 1024, 2048, 4096, 8192)},
}
"""Values beside the baseline; one setting changes at a time."""

Own = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Settings of a task, and their fields of the recipe."""

_SMALL: Mapping[str, Own] = {
    "in-context-recall": ({"seq_len": 32}, {}),
    "fuzzy-in-context-recall": ({"seq_len": 64}, {"batch_size": 32}),
    "noisy-in-context-recall": ({"seq_len": 64}, {"batch_size": 32}),
    "selective-copying": ({"seq_len": 40, "tokens_to_copy": 4}, {}),
    "compression": ({"train_rows": 12_800}, {}),
    "memorization": ({"train_rows": 256}, {"batch_size": 32}),
}
"""The task configs of `smoke`."""
_REDUCED: Mapping[str, Axes] = {
    "in-context-recall": {"vocab": (32,), "seq_len": (64,)},
    "fuzzy-in-context-recall": {"seq_len": (128,)},
    "noisy-in-context-recall": {"frac_noise": (0.6,)},
    "selective-copying": {"seq_len": (80,), "tokens_to_copy": (8,)},
    "compression": {"vocab": (64,)},
    "memorization": {"vocab": (1024, 4096)},
}
"""Values beside those of `smoke`; one setting changes at a time."""
_ROWS = {"train_rows": 6400, "test_rows": 256}
_SWEEP: tuple[Mapping[str, float], ...] = ({"lr": 2e-3, "weight_decay": 0.0},)
_RECIPE: Mapping[str, Any] = dict(
    schedule="constant", clip=1.0, batch_size=64, steps=600, eval_every=50
)
_RECALL_STEPS = 3600
"""Attention finds recall late: at 2e-3 its accuracy is below .5 for 1,600 steps, and 1 at 2,300."""


def _config(
    task: str,
    values: Mapping[str, Any],
    label: str = "baseline",
    recipe: Mapping[str, Any] = {},
    dim: int | None = None,
) -> TaskConfig:
    """Return the task config with these values, else the task's defaults."""
    name = find(task).name
    return TaskConfig(name, asdict(resolve(name, values)), label, recipe, dim)


def _grid(axes: Mapping[str, Axes], base: Mapping[str, Own] = {}) -> Iterator[TaskConfig]:
    """Yield each task's `base`, then its configs with one value of one axis."""
    for task in axes:
        values, recipe = base.get(task, ({}, {}))
        yield _config(task, values, "baseline", recipe)
        for name, choices in axes[task].items():
            for value in choices:
                yield _config(task, {**values, name: value}, f"{name}={value}", recipe)


def smoke() -> Suite:
    """Small configs of the six tasks, seconds to a minute or two each on one core."""
    configs = (_config(t, {**_ROWS, **own}, recipe=how) for t, (own, how) in _SMALL.items())
    return Suite("smoke", tuple(configs), _SWEEP, _RECIPE, dim=64)


def reduced() -> Suite:
    """15 task configs of the axes of `full` at the sizes of `smoke`: half an hour on one core."""
    base: dict[str, Own] = {}
    for task, (values, how) in _SMALL.items():
        longer = {"steps": _RECALL_STEPS} if task.endswith("recall") else {}
        base[task] = {**_ROWS, **values}, {**how, **longer}
    recipe = {**_RECIPE, "steps": 1200}
    return Suite("reduced", tuple(_grid(_REDUCED, base)), _SWEEP, recipe, dim=64)


def lite() -> Suite:
    """The six baselines."""
    sweep = tuple({"lr": lr, "weight_decay": 0.0} for lr in (5e-4, 2e-3))
    configs = tuple(_config(task, {}) for task in BENCHMARK)
    return Suite("lite", configs, sweep, {"steps": 2000, "eval_every": 100})


def full() -> Suite:
    """The difficulty grid of the benchmark: 66 task configs, each with 6 optimizer configs."""
    sweep = tuple(
        {"lr": lr, "weight_decay": decay} for lr in (1e-4, 5e-4, 1e-3) for decay in (0.0, 0.1)
    )
    return Suite("full", tuple(_grid(_HARDER)), sweep, {"epochs": 200})


# -- one skill each --------------------------------------------------------------------------------

_KNOWLEDGE: Mapping[str, tuple[Mapping[str, Any], str, Sequence[int]]] = {
    "depo": ({"train_rows": 25_600}, "hops", (1, 2, 4)),
    "mano": ({}, "operations", (1, 2, 3)),
    "memorization": ({"train_rows": 256}, "vocab", (256, 1024, 4096)),
}
"""Settings of the task that replace its baseline's, and the one that changes."""


def recall() -> Suite:
    """Recall at three state sizes, copies over four lengths, a grammar: five minutes of one core.

    Copies over 256 tokens and more are the published ones; that of Mamba's paper
    (arXiv:2312.00752) has 4,096.
    """
    rows: list[tuple[str, Mapping[str, Any], str, int, int | None]] = [
        *(
            ("MQAR", {"n_pairs": n}, f"n_pairs={n}, dim={dim or 64}", 64, dim)
            for dim in (None, 32, 16)
            for n in (4, 16)
        ),
        *(
            ("SC", {"seq_len": length, "tokens_to_copy": 8}, f"seq_len={length}", batch, None)
            for length, batch in ((64, 64), (128, 64), (256, 32), (512, 16))
        ),
        *(("SG", {"gap_prob": gap}, f"gap_prob={gap}", 64, None) for gap in (0.0, 0.1)),
    ]
    configs = (
        _config(task, {**_ROWS, **own}, label, {"batch_size": batch}, dim)
        for task, own, label, batch, dim in rows
    )
    return Suite("recall", tuple(configs), _SWEEP, _RECIPE, dim=64)


def state() -> Suite:
    """Word problems of five groups, and Dyck: rows of 40 to train on, scored to 2,048."""
    groups = (_config("state-tracking", {"group": one}, f"group={one}") for one in ORDERS)
    recipe = dict(
        optimizer=replace(PUBLISHED, beta2=0.95), schedule="cosine", clip=0.25, batch_size=32,
        steps=3000, eval_every=100, stop_accuracy=1.0,
    )  # fmt: skip
    sweep = ({"lr": 8e-3, "weight_decay": 0.0},)
    return Suite("state", (*groups, _config("dyck", {})), sweep, recipe, dim=32)


def knowledge() -> Suite:
    """Hops along a cycle in the context; arithmetic and a map in the parameters."""
    configs = tuple(
        _config(task, {"test_rows": 256, **own, name: value}, f"{name}={value}")
        for task, (own, name, values) in _KNOWLEDGE.items()
        for value in values
    )
    recipe = {**_RECIPE, "batch_size": 32, "steps": 800}
    return Suite("knowledge", configs, _SWEEP, recipe, dim=64)


# -- language models -------------------------------------------------------------------------------


def lm(given: str | None = None) -> Suite:
    """Bits per byte of validation text after a short training; a minute, lm:20s, lm:2Mtok."""
    budget = "60s" if given is None else given
    is_tokens = budget.endswith("tok")
    try:
        amount = parse_count(budget.removesuffix("tok")) if is_tokens else parse_duration_s(budget)
    except ValueError:
        amount = 0
    if amount <= 0:
        raise ConfigError(
            f"suite lm:{budget} has no budget of a run; give time or tokens: lm:60s or lm:2Mtok"
        )
    one = _config(TEXT_TASK, {"tokens" if is_tokens else "time": amount}, LM)
    recipe = {"optimizer": DEFAULT(), "clip": 0.5, "batch_size": 4}
    return Suite(LM if given is None else f"{LM}:{given}", (one,), ({},), recipe)


LM = "lm"
SUITES: Mapping[str, Callable[[], Suite]] = {
    make.__name__: make for make in (smoke, lite, full, reduced, recall, state, knowledge, lm)
}
"""Suites by their names; a docstring says what a suite measures."""


def _mixed(text: Suite, other: Suite) -> Suite:
    """Return a suite of text and tasks, whose configs keep the recipe and width of their suite."""
    if len(other.sweep) != 1:
        raise ConfigError(
            f"suite {other.name} sweeps {len(other.sweep)} optimizer points, and lm has none; mix "
            "lm with smoke, reduced, recall, state or knowledge"
        )
    own = tuple(
        replace(
            one, recipe={**other.sweep[0], **other.recipe, **one.recipe}, dim=one.dim or other.dim
        )
        for one in other.task_configs
    )
    return replace(text, name=f"{text.name}+{other.name}", task_configs=(*text.task_configs, *own))


def suite(name: str) -> Suite:
    """Return a suite by its name; lm:60s has a budget, lm:60s+recall another suite beside it.

    Raises:
        ConfigError: no such suite.
    """
    first, *others = name.split("+")
    is_text = [one.partition(":")[0] == LM for one in (first, *others)]
    if others and is_text != [True, False]:
        raise ConfigError(
            f"suite {name} mixes {', '.join((first, *others))}; mix lm and one suite of tasks, in "
            "this order, as in lm:60s+recall"
        )
    if is_text[0]:
        text = lm(*first.split(":", 1)[1:])
        return _mixed(text, suite(others[0])) if others else text
    if name not in SUITES:
        near = did_you_mean(name, SUITES) or f"; choose one of {', '.join(SUITES)}"
        raise ConfigError(f"no suite {name!r}{near}")
    return SUITES[name]()
