"""Suites: settings of tasks, and optimiser points, on which an architecture is scored.

    smoke   small settings of the six tasks, seconds to a minute or two each on one core
    lite    the six baselines
    full    the difficulty grid of the benchmark: 66 settings, 6 points each

Source: Poli et al. 2024, arXiv:2403.17844, and its code, for the grid.
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
from mlxhog.models.mad.layer import Layer


@dataclass(frozen=True)
class Setting:
    """One task at one difficulty.

    Attributes:
        task: full name.
        settings: every setting of the task.
        label: the difference from the task's first setting, such as "vocab=32", or "baseline".
        protocol: its fields of the protocol, which replace those of the suite.
    """

    task: str
    settings: Mapping[str, Any]
    label: str
    protocol: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """The settings, points and protocol behind one score.

    Attributes:
        name: one of `SUITES`.
        settings: in the order of the tasks.
        points: lr and weight_decay of the runs on each setting; the best one counts.
        protocol: other fields of `Protocol`; the optimizer is the published one by default, so that
            scores compare with earlier ones, whatever `mlxhog train` has.
        dim: width of a candidate.
    """

    name: str
    settings: tuple[Setting, ...]
    points: tuple[Mapping[str, float | None], ...]
    protocol: Mapping[str, Any]
    dim: int = 128

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


def _baseline(task: str) -> Setting:
    return Setting(task, asdict(BENCHMARK[task].settings()), "baseline")


def _smoke() -> Suite:
    rows = {"train_rows": 6400, "test_rows": 256}
    settings = tuple(
        Setting(task, asdict(resolve(task, {**rows, **values})), "baseline", protocol)
        for task, (values, protocol) in _SMALL.items()
    )
    protocol = dict(schedule="constant", clip=1.0, batch_size=64, steps=600, eval_every=50)
    return Suite("smoke", settings, ({"lr": 2e-3, "weight_decay": 0.0},), protocol, dim=64)


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


_MAKE = {"smoke": _smoke, "lite": _lite, "full": _full}
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
        ConfigError: no such task.
    """
    names = {find(task).name for task in tasks}
    settings = tuple(setting for setting in chosen.settings if setting.task in names)
    return replace(chosen, settings=settings)


def fixed(chosen: Suite, protocol: Mapping[str, Any]) -> Suite:
    """Return a suite whose points have the fixed values of a protocol; equal points become one.

    The points are those of the suite's optimizer: another one has its own step size and decay,
    unless the protocol fixes them.
    """
    of_suite = ({"lr": None},) if "optimizer" in protocol else chosen.points
    points = [{name: protocol.get(name, value) for name, value in p.items()} for p in of_suite]
    once = tuple(point for k, point in enumerate(points) if point not in points[:k])
    return replace(chosen, points=once)


def expand(
    chosen: Suite,
    layers: tuple[Layer, ...],
    seeds: Iterable[int],
    *,
    dim: int | None = None,
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
        dim: width; None is the suite's.
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
                        dim=chosen.dim if dim is None else dim,
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
