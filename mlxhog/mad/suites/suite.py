"""A suite: settings of tasks, and optimiser points, on which an architecture is scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mlxhog.config.plugins import files_of
from mlxhog.errors import ConfigError
from mlxhog.mad.options import PUBLISHED, Protocol
from mlxhog.mad.run import RunConfig
from mlxhog.mad.tasks import find
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.sequence import canonical


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
        if None in self.lrs:
            return None
        return self.lrs[(len(self.lrs) - 1) // 2] if self.own_lr is None else self.own_lr

    def __post_init__(self) -> None:
        """Set the optimizer."""
        object.__setattr__(self, "protocol", {"optimizer": PUBLISHED, **self.protocol})

    @property
    def runs(self) -> int:
        """Runs of one candidate with one seed."""
        return len(self.settings) * len(self.points)


def only(chosen: Suite, tasks: Sequence[str]) -> Suite:
    """Return a suite with the settings of some tasks only, by their full or short names.

    A task that the suite lacks, such as one of the user's own, has the defaults of its settings.

    Raises:
        ConfigError: no such task.
    """
    settings = [one for one in chosen.settings if one.task in {find(task).name for task in tasks}]
    present = {one.task for one in settings}
    absent = {one.name: one for one in map(find, tasks) if one.name not in present}
    settings += [Setting(name, asdict(one()), "baseline") for name, one in absent.items()]
    return replace(chosen, settings=tuple(settings))


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
) -> Iterator[RunConfig]:
    """Yield every run of a candidate, setting after setting.

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
                yield RunConfig(
                    task=setting.task,
                    settings=_for_protocol(setting.settings, how),
                    layers=layers,
                    dim=chosen.dim if setting.dim is None else setting.dim,
                    protocol=how,
                    seed=seed,
                    position=position,
                    workers=workers,
                    threads=threads,
                    plugins=files_of((*layers, find(setting.task))),
                    candidate=canonical(layers),
                    label=setting.label,
                )


def _for_protocol(settings: Mapping[str, Any], protocol: Protocol) -> Mapping[str, Any]:
    changed = dict(settings)
    if protocol.select == "val":
        changed["val_rows"] = changed["val_rows"] or changed["test_rows"]
    if "fuzzy_compat" in changed:
        changed["fuzzy_compat"] = changed["fuzzy_compat"] or protocol.fuzzy_compat
    return changed
