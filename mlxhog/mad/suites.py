"""Suites: settings of tasks, and optimiser points, on which an architecture is scored.

    smoke   small settings of the six tasks, seconds to a minute or two each on one core
    lite    the six baselines
    full    the difficulty grid of the benchmark: 66 settings, 6 points each
    reduced 15 settings of that grid's axes at the sizes of smoke: a quarter of an hour on one core
    recall  recall of several pairs at several state sizes, copies over several lengths, a grammar
    knowledge  hops along a cycle in the context; arithmetic and a map in the parameters
    state   word problems of five groups, and Dyck: rows of 40 to train on, scored to 2,048

Source: Poli et al. 2024, arXiv:2403.17844, and its code, for the grid; the modules of the tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mlxhog.config.plugin_file import files_of
from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.mad.options import PUBLISHED, Protocol
from mlxhog.mad.run import RunConfig
from mlxhog.mad.tasks import BENCHMARK, find, resolve
from mlxhog.mad.tasks.state_tracking import ORDERS
from mlxhog.models.mad.layer import Layer


@dataclass(frozen=True)
class Setting:
    """One task at one difficulty.

    Attributes:
        task: full name.
        settings: every setting of the task.
        label: the difference from the task's first setting, such as "vocab=32", or "baseline".
        protocol: its fields of the protocol, which replace those of the suite.
        dim: width of a candidate on this setting only; None is the suite's.
    """

    task: str
    settings: Mapping[str, Any]
    label: str
    protocol: Mapping[str, Any] = field(default_factory=dict)
    dim: int | None = None


@dataclass(frozen=True)
class Suite:
    """The settings, points and protocol behind one score.

    Attributes:
        name: one of `SUITES`.
        settings: in the order of the tasks.
        points: lr and weight_decay of the runs on each setting; the best one counts.
        protocol: other fields of `Protocol`; the optimizer is the published one by default, so that
            scores compare with earlier ones, whatever `mlxhog train` has.
        dim: width of a candidate; its parameters and its state are counted at this width.
        own_lr: the fixed step size, if others were added to `points`.
    """

    name: str
    settings: tuple[Setting, ...]
    points: tuple[Mapping[str, float | None], ...]
    protocol: Mapping[str, Any]
    dim: int = 128
    own_lr: float | None = None

    @property
    def lrs(self) -> list[float | None]:
        """The step sizes of the points, ascending; None is the optimizer's own."""
        return sorted({point["lr"] for point in self.points}, key=lambda lr: lr or 0.0)

    @property
    def fixed_lr(self) -> float | None:
        """The step size of the score at a fixed one: the suite's middle one, the lower of two."""
        if None in self.lrs or self.own_lr is None:
            return None if None in self.lrs else self.lrs[(len(self.lrs) - 1) // 2]
        return self.own_lr

    def __post_init__(self) -> None:
        """Set the optimizer."""
        object.__setattr__(self, "protocol", {"optimizer": PUBLISHED, **self.protocol})

    @property
    def runs(self) -> int:
        """Runs of one candidate with one seed."""
        return len(self.settings) * len(self.points)


_RECALL: Mapping[str, tuple[float, ...]] = {
    "vocab": (32, 64, 128),
    "seq_len": (256, 512, 1024),
    "train_rows": (6400, 3200, 1600, 800),
}
_HARDER: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "in-context-recall": _RECALL,
    "fuzzy-in-context-recall": _RECALL,
    "noisy-in-context-recall": {**_RECALL, "vocab": (48, 80, 144), "frac_noise": (0.4, 0.6, 0.8)},
    "selective-copying": {**_RECALL, "seq_len": (512, 1024), "tokens_to_copy": (32, 64, 96)},
    "compression": {**_RECALL, "seq_len": (64, 128, 256)},
    "memorization": {"vocab": (512, 1024, 2048, 4096, 8192)},
}
"""Beside the baseline; one setting changes at a time."""

_SMALL: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "in-context-recall": ({"seq_len": 32}, {}),
    "fuzzy-in-context-recall": ({"seq_len": 64}, {"batch_size": 32}),
    "noisy-in-context-recall": ({"seq_len": 64}, {"batch_size": 32}),
    "selective-copying": ({"seq_len": 40, "tokens_to_copy": 4}, {}),
    "compression": ({"train_rows": 12_800}, {}),
    "memorization": ({"train_rows": 256}, {"batch_size": 32}),
}
"""Of smoke: settings of the task, and their fields of the protocol."""
_SMALL_PROTOCOL: Mapping[str, Any] = dict(
    schedule="constant", clip=1.0, batch_size=64, steps=600, eval_every=50
)
_REDUCED: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "in-context-recall": {"vocab": (32,), "seq_len": (64,)},
    "fuzzy-in-context-recall": {"seq_len": (128,)},
    "noisy-in-context-recall": {"frac_noise": (0.6,)},
    "selective-copying": {"seq_len": (80,), "tokens_to_copy": (8,)},
    "compression": {"vocab": (64,)},
    "memorization": {"vocab": (1024, 4096)},
}
"""Beside the settings of smoke; one setting changes at a time."""


def _baseline(task: str) -> Setting:
    return Setting(task, asdict(BENCHMARK[task].settings()), "baseline")


def _small(task: str, label: str = "baseline", **harder: float) -> Setting:
    values, protocol = _SMALL[task]
    rows = {"train_rows": 6400, "test_rows": 256}
    return Setting(task, asdict(resolve(task, {**rows, **values, **harder})), label, protocol)


def _smoke() -> Suite:
    point = {"lr": 2e-3, "weight_decay": 0.0}
    return Suite("smoke", tuple(map(_small, _SMALL)), (point,), _SMALL_PROTOCOL, dim=64)


def _reduced() -> Suite:
    settings = []
    for task, axes in _REDUCED.items():
        settings += [_small(task)]
        settings += [
            _small(task, f"{name}={value}", **{name: value})
            for name, values in axes.items()
            for value in values
        ]
    protocol = {**_SMALL_PROTOCOL, "steps": 1200}
    return replace(_smoke(), name="reduced", settings=tuple(settings), protocol=protocol)


def _lite() -> Suite:
    points = tuple({"lr": lr, "weight_decay": 0.0} for lr in (5e-4, 2e-3))
    settings = tuple(_baseline(task) for task in BENCHMARK)
    return Suite("lite", settings, points, {"steps": 2000, "eval_every": 100})


def _full() -> Suite:
    points = tuple(
        {"lr": lr, "weight_decay": decay} for lr in (1e-4, 5e-4, 1e-3) for decay in (0.0, 0.1)
    )
    return Suite("full", tuple(_grid()), points, {"epochs": 200})


def _grid() -> Iterator[Setting]:
    for task in BENCHMARK:
        yield _baseline(task)
        for name, values in _HARDER[task].items():
            for value in values:
                yield Setting(task, asdict(resolve(task, {name: value})), f"{name}={value}")


def _recall() -> Suite:
    """Return settings of small candidates, about five minutes of one core for one of them.

    Copies over 256 tokens and more are the published ones; that of Mamba's paper
    (arXiv:2312.00752) has 4,096.
    """
    rows = {"train_rows": 6400, "test_rows": 256}

    def setting(
        task: str, label: str, *, dim: int | None = None, batch_size: int = 64, **values: object
    ) -> Setting:
        settings = asdict(resolve(task, {**rows, **values}))
        return Setting(task, settings, label, {"batch_size": batch_size}, dim)

    mqar, copying, grammar = (find(short).name for short in ("MQAR", "SC", "SG"))
    settings = [
        setting(mqar, f"n_pairs={n_pairs}, dim={dim or 64}", n_pairs=n_pairs, dim=dim)
        for dim in (None, 32, 16)
        for n_pairs in (4, 16)
    ]
    settings += [
        setting(copying, f"seq_len={length}", seq_len=length, tokens_to_copy=8, batch_size=batch)
        for length, batch in ((64, 64), (128, 64), (256, 32), (512, 16))
    ]
    settings += [
        setting(grammar, f"gap_prob={gap_prob}", gap_prob=gap_prob) for gap_prob in (0.0, 0.1)
    ]
    protocol = dict(schedule="constant", clip=1.0, batch_size=64, steps=600, eval_every=50)
    points = ({"lr": 2e-3, "weight_decay": 0.0},)
    return Suite("recall", tuple(settings), points, protocol, dim=64)


_KNOWLEDGE: Mapping[str, tuple[Mapping[str, Any], Mapping[str, tuple[float, ...]]]] = {
    "depo": ({"train_rows": 25_600}, {"hops": (1, 2, 4)}),
    "mano": ({}, {"operations": (1, 2, 3)}),
    "memorization": ({"train_rows": 256}, {"vocab": (256, 1024, 4096)}),
}
"""Settings of the task that replace its baseline's, and the one that changes."""


def _knowledge() -> Suite:
    settings = tuple(
        Setting(
            task, asdict(resolve(task, {"test_rows": 256, **own, name: value})), f"{name}={value}"
        )
        for task, (own, axis) in _KNOWLEDGE.items()
        for name, values in axis.items()
        for value in values
    )
    protocol = dict(schedule="constant", clip=1.0, batch_size=32, steps=800, eval_every=50)
    return Suite("knowledge", settings, ({"lr": 2e-3, "weight_decay": 0.0},), protocol, dim=64)


def _state() -> Suite:
    word_problems = (
        Setting(
            "state-tracking", asdict(resolve("state-tracking", {"group": group})), f"group={group}"
        )
        for group in ORDERS
    )
    settings = (*word_problems, Setting("dyck", asdict(resolve("dyck", {})), "baseline"))
    protocol = dict(
        optimizer=replace(PUBLISHED, beta2=0.95), schedule="cosine", clip=0.25, batch_size=32,
        steps=3000, eval_every=100, stop_accuracy=1.0,
    )  # fmt: skip
    return Suite("state", settings, ({"lr": 8e-3, "weight_decay": 0.0},), protocol, dim=32)


_MAKE = {
    "smoke": _smoke,
    "lite": _lite,
    "full": _full,
    "reduced": _reduced,
    "recall": _recall,
    "state": _state,
    "knowledge": _knowledge,
}
SUITES = tuple(_MAKE)


def suite(name: str) -> Suite:
    """Return a suite by its name.

    Raises:
        ConfigError: no such suite.
    """
    if name not in _MAKE:
        near = did_you_mean(name, _MAKE) or f"; choose one of {', '.join(_MAKE)}"
        raise ConfigError(f"no suite {name!r}{near}")
    return _MAKE[name]()


def only(chosen: Suite, tasks: Iterable[str]) -> Suite:
    """Return a suite with the settings of some tasks only, by their full or short names.

    Raises:
        ConfigError: no such task, or one without a setting in the suite.
    """
    names = {find(task).name for task in tasks}
    present = list(dict.fromkeys(setting.task for setting in chosen.settings))
    if absent := sorted(names - set(present)):
        raise ConfigError(
            f"suite {chosen.name} has no {absent[0]}; its tasks are {', '.join(present)}"
        )
    settings = tuple(setting for setting in chosen.settings if setting.task in names)
    return replace(chosen, settings=settings)


def at_dim(chosen: Suite, dim: int) -> Suite:
    """Return a suite for candidates of another width.

    Raises:
        ConfigError: some settings have widths of their own, which compare state sizes.
    """
    own = [setting for setting in chosen.settings if setting.dim is not None]
    if own and dim != chosen.dim:
        tasks = dict.fromkeys(setting.task for setting in own)
        widths = dict.fromkeys(setting.dim for setting in own)
        raise ConfigError(
            f"the width is {dim}, but suite {chosen.name} compares widths on {', '.join(tasks)}: "
            f"{chosen.dim} and {', '.join(map(str, widths))}; leave the width out of the command "
            "and of the space, give layers instead of an architecture, or choose other --tasks"
        )
    return replace(chosen, dim=dim)


def fixed(chosen: Suite, protocol: Mapping[str, Any]) -> Suite:
    """Return a suite whose points have the fixed values of a protocol; equal points become one.

    The points are those of the suite's optimizer: another one has its own step size and decay,
    unless the protocol fixes them.
    """
    of_suite = ({"lr": None},) if "optimizer" in protocol else chosen.points
    points = [{name: protocol.get(name, value) for name, value in p.items()} for p in of_suite]
    once = tuple(point for k, point in enumerate(points) if point not in points[:k])
    return replace(chosen, points=once)


def with_rates(chosen: Suite, rates: Iterable[float]) -> Suite:
    """Return a suite with other step sizes in its points, and its fixed one for comparison."""
    decays = [{k: v for k, v in point.items() if k != "lr"} for point in chosen.points]
    points = (
        {"lr": lr, **other}
        for lr in sorted({chosen.fixed_lr, *rates}, key=lambda lr: lr or 0.0)
        for k, other in enumerate(decays)
        if other not in decays[:k]
    )
    return replace(chosen, points=tuple(points), own_lr=chosen.fixed_lr)


def expand(
    chosen: Suite,
    layers: tuple[Layer, ...],
    seeds: Iterable[int],
    *,
    position: str = "none",
    workers: str = "torch:cpu",
    threads: int = 1,
    protocol: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Setting, RunConfig]]:
    """Yield every run of a candidate with its setting.

    Args:
        chosen: the suite.
        layers: the candidate.
        seeds: one set of runs for each.
        position: positional embedding.
        workers: backends of the workers of a run.
        threads: of each worker.
        protocol: fields of all runs, which replace those of the suite and of the settings.
            `select` "val" draws validation rows, and `fuzzy_compat` is also set in the task.

    Raises:
        ConfigError: a field of the protocol is wrong.
    """
    seeds = tuple(seeds)
    for setting in chosen.settings:
        fields = {**chosen.protocol, **setting.protocol, **(protocol or {})}
        for seed in seeds:
            for point in chosen.points:
                how = Protocol(**{**point, **fields})
                yield (
                    setting,
                    RunConfig(
                        task=setting.task,
                        settings=_for_protocol(setting.settings, how),
                        layers=layers,
                        dim=chosen.dim if setting.dim is None else setting.dim,
                        protocol=how,
                        seed=seed,
                        position=position,
                        workers=workers,
                        threads=threads,
                        plugins=files_of(layers),
                    ),
                )


def _for_protocol(settings: Mapping[str, Any], protocol: Protocol) -> Mapping[str, Any]:
    changed = dict(settings)
    if protocol.select == "val":
        changed["val_rows"] = changed["val_rows"] or changed["test_rows"]
    if "fuzzy_compat" in changed:
        changed["fuzzy_compat"] = changed["fuzzy_compat"] or protocol.fuzzy_compat
    return changed
