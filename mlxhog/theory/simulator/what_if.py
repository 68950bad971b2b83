"""`mlxhog simulate`: every strategy on one set of workers, side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxhog.config.options import convert_fields, option
from mlxhog.config.rules import Slowdown, parse_slowdowns
from mlxhog.errors import ConfigError, DataError, did_you_mean
from mlxhog.files.quantities import parse_duration_s
from mlxhog.report.table import Section
from mlxhog.theory.simulator import Deadlock, Event, Prediction, descend, simulate, times
from mlxhog.theory.simulator.gates import SSP, PushGate, VersionBound
from mlxhog.theory.simulator.objectives import Learner, Objective, Quadratic, SparseLogistic
from mlxhog.theory.simulator.schemes import (
    Hogwild,
    Locked,
    OuterLoop,
    ParameterServer,
    RoundRobin,
    Scheme,
    Sync,
)
from mlxhog.theory.simulator.workers import Worker

TARGET = 0.01
"""Share of the first excess at which a toy training ends."""

RATES = tuple(2.0**-k for k in range(9))
"""Step sizes that a toy training tries, as multiples of the problem's largest."""


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Options of `mlxhog simulate`."""

    workers: int = option(4, "number of workers", low=1, high=1000)
    times: str = option(
        "lognormal:100ms:0.2",
        "time of a gradient: " + ", ".join(form for form, _ in times.FORMS.values()),
    )
    slow: str | None = option(
        None,
        "workers that are slower, as --slow of train: 1=10, 0=random:0.1:6, 2=late:30s",
    )
    kill: str | None = option(
        None,
        "deaths: RANK=TIME, or RANK=TIME:DOWN if it returns after that time; such as 1=30s:5s",
    )
    join: str | None = option(None, "workers that join later: RANK=TIME; such as 3=1m")
    strategies: str = option(
        "all", "strategies to compare, such as hogwild,sync; all is every one without deadlocks"
    )
    read: float = option(0.0, "time to copy the parameters", unit="s", low=0)
    apply: float = option(0.0, "time to add a step to all parameters", unit="s", low=0)
    sync_time: float = option(0.0, "time of a barrier, or of a merge of copies", unit="s", low=0)
    period: int = option(16, "steps between two merges of local_sgd and diloco", low=1)
    replicas: int | None = option(
        None, "of diloco; auto is half the workers, one at least", low=1, none="auto"
    )
    slack: int = option(2, "steps that ssp lets a worker run ahead", low=0)
    backup_workers: int = option(1, "workers that rounds of sync_backup do not wait for", low=0)
    max_staleness: int = option(4, "bound of version_bound, version_naive and push_gate", low=0)
    cores: int | None = option(
        None, "of the machine, shared by the workers; auto is one for each", low=1, none="auto"
    )
    objective: str = option(
        "none",
        "also train a small problem to 1 % of its first excess, at the best of nine step sizes",
        choices=("none", "quadratic", "logistic"),
    )
    updates: int = option(5000, "gradients to simulate for each strategy", low=10, high=10_000_000)
    seed: int = option(0, "of the times", low=0)

    def __post_init__(self) -> None:
        """Convert and check.

        Raises:
            ConfigError: wrong options, each on a line of its own.
        """
        problems = convert_fields(self)
        if problems:
            raise ConfigError("\n".join(problems))


# -- strategies by name ----------------------------------------------------------------------------


def _replicas(config: SimulateConfig) -> int:
    if config.replicas is not None:
        return config.replicas
    half = max(1, config.workers // 2)
    return next(n for n in range(half, 0, -1) if config.workers % n == 0)


TRAINING: Mapping[str, Callable[[SimulateConfig], Scheme]] = {
    "serial": lambda c: Hogwild(),
    "hogwild": lambda c: Hogwild(),
    "locked": lambda c: Locked(),
    "async_ps": lambda c: ParameterServer(),
    "ssp": lambda c: SSP(c.slack),
    "version_bound": lambda c: VersionBound(c.max_staleness),
    "round_robin": lambda c: RoundRobin(c.sync_time),
    "sync": lambda c: Sync(round_s=c.sync_time),
    "sync_speed": lambda c: Sync(round_s=c.sync_time, by_speed=True),
    "sync_backup": lambda c: Sync(
        backups=min(c.backup_workers, c.workers - 1), round_s=c.sync_time
    ),
    "local_sgd": lambda c: OuterLoop(c.period, round_s=c.sync_time),
    "diloco": lambda c: OuterLoop(c.period, _replicas(c), c.sync_time, "diloco"),
    "avg_runs": lambda c: OuterLoop(None, name="avg_runs"),
}
"""Schemes by name: `sync_speed` is sync with shares by speed, `sync_backup` has backup workers."""

DEADLOCKING: Mapping[str, Callable[[SimulateConfig], Scheme]] = {
    "version_naive": lambda c: VersionBound(c.max_staleness, safe=False),
    "push_gate": lambda c: PushGate(c.max_staleness),
}
"""Rules that deadlock, simulated only if they are named."""


def chosen(config: SimulateConfig) -> list[str]:
    """Return the names that `strategies` lists.

    Raises:
        ConfigError: a name is unknown.
    """
    if config.strategies == "all":
        return [name for name in TRAINING if name != "sync_speed" or config.slow is not None]
    names = [name.strip() for name in config.strategies.split(",")]
    known = (*TRAINING, *DEADLOCKING)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--strategies names {name!r}; wanted all, or some of {', '.join(known)}"
                + did_you_mean(name, known)
            )
    return list(dict.fromkeys(names))


# -- workers and events ----------------------------------------------------------------------------


def workers_of(config: SimulateConfig, recorded: Sequence[Worker] | None = None) -> list[Worker]:
    """Return the workers of the options, or recorded ones, with their slowdowns.

    Raises:
        ConfigError: a time model or a slowdown cannot be read, or names no worker.
    """
    try:
        time = times.parse(config.times)
        slow = parse_slowdowns(config.slow)
    except (ValueError, DataError) as error:
        raise ConfigError(f"simulate: {error}") from error
    _check_ranks("--slow", slow, config.workers)
    ours = recorded or [
        Worker(name=f"worker {rank}", compute=time, read_s=config.read, apply_s=config.apply)
        for rank in range(config.workers)
    ]
    return [
        replace(worker, compute=_slowed(worker.compute, slow.get(rank, Slowdown())))
        for rank, worker in enumerate(ours)
    ]


def _slowed(time: times.ComputeTime, how: Slowdown) -> times.ComputeTime:
    if how.probability < 1:
        return times.HeldUpTimes(time, how.probability, how.factor)
    return time.scaled(how.factor)


def events_of(config: SimulateConfig) -> list[Event]:
    """Return the deaths and joins of the options.

    Raises:
        ConfigError: an event cannot be read, or names no worker.
    """
    late = {r: how.late_s for r, how in parse_slowdowns(config.slow).items() if how.late_s}
    events = [Event(at_s, rank, joins=True) for rank, at_s in late.items()]
    for rank, (at_s,) in _moments("--join", config.join, 1).items():
        events.append(Event(at_s, rank, joins=True))
    for rank, (at_s, *more) in _moments("--kill", config.kill, 2).items():
        events.append(Event(at_s, rank, joins=False))
        events += [Event(at_s + down_s, rank, joins=True) for down_s in more]
    _check_ranks("an event", {event.rank: event for event in events}, config.workers)
    return sorted(events)


def _moments(flag: str, text: str | None, most: int) -> dict[int, list[float]]:
    moments: dict[int, list[float]] = {}
    for part in [] if text is None else text.split(","):
        rank, equals, words = part.strip().partition("=")
        try:
            values = [parse_duration_s(word) for word in words.split(":")]
            if not (equals and rank.isdecimal()) or len(values) > most or min(values) < 0:
                raise ValueError
        except ValueError:
            form = "RANK=TIME" if most == 1 else "RANK=TIME or RANK=TIME:DOWN"
            raise ConfigError(
                f"{flag} has {part.strip()!r}; wanted {form} for each worker, such as 1=30s"
            ) from None
        if int(rank) in moments:
            raise ConfigError(f"{flag} names worker {int(rank)} twice; give each one time")
        moments[int(rank)] = values
    return moments


def _check_ranks(flag: str, ranks: Mapping[int, object], workers: int) -> None:
    for rank in ranks:
        if rank >= workers:
            raise ConfigError(
                f"{flag} names worker {rank}, and there are {workers} with ranks 0 to "
                f"{workers - 1}; name one of those, or raise --workers"
            )


# -- the comparison --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PredictedStrategy:
    """One strategy on the workers.

    Attributes:
        name: of the strategy.
        prediction: of its speed; None if it deadlocks.
        deadlock: description of the deadlock; None without one.
        target_s: seconds to the toy problem's target, at the best step size; None without a toy
            problem, infinite if no step size reaches it.
    """

    name: str
    prediction: Prediction | None = None
    deadlock: str | None = None
    target_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = {} if self.prediction is None else self.prediction.to_json()
        reached = self.target_s is None or math.isfinite(self.target_s)
        return {
            "strategy": self.name,
            **values,
            "deadlock": self.deadlock,
            "target_s": self.target_s if reached else None,
        }


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """All strategies, on the same workers.

    Attributes:
        config: the options.
        workers: the costs of their steps.
        source: of these costs.
        rows: the strategies, in the order of the options.
    """

    config: SimulateConfig
    workers: Sequence[Worker]
    source: str
    rows: Sequence[PredictedStrategy]

    @property
    def answer(self) -> str:
        """One sentence."""
        running = {row.name: row.prediction for row in self.rows if row.prediction is not None}
        if not running:
            return "every strategy of --strategies deadlocks"
        rate = {name: one.gradients_per_s for name, one in running.items()}
        timed = {r.name: r.target_s for r in self.rows if r.target_s and math.isfinite(r.target_s)}
        if timed:
            first = min(timed, key=lambda name: timed[name])
            others = {name: s for name, s in timed.items() if name != first}
            text = f"{first} reaches the target first, after {timed[first]:.3g} s"
            if others:
                second = min(others, key=lambda name: others[name])
                text += f"; {second} takes {others[second] / timed[first]:.2f} times as long"
            return text
        best = max(rate, key=lambda name: rate[name])
        waiting = {name: one.waiting_share for name, one in running.items()}
        text = f"{best} computes most: {rate[best]:.4g} gradients/s"
        if "sync" in rate and best != "sync":
            text += (
                f", {rate[best] / rate['sync']:.2f} times sync, whose workers wait "
                f"{waiting['sync']:.0%} of their time"
            )
        return text

    def to_json(self) -> dict[str, Any]:
        """Return what `simulate --json` prints."""
        return {"answer": self.answer, "strategies": [row.to_json() for row in self.rows]}

    def sections(self) -> Iterator[Section]:
        """Arrange the comparison for `mlxhog.report.table.show`, 80 columns wide."""
        yield Section(textwrap.fill(self.answer, 80))
        timed = any(row.target_s is not None for row in self.rows)
        header = ["strategy", "gradients/s", "of ideal", "staleness", "largest", "idle", "wasted"]
        header += ["target"] if timed else []
        best = sum(1 / worker.step_s for worker in self.workers)
        rows, notes = [], []
        for row in self.rows:
            one = row.prediction
            if one is None:
                rows.append((row.name, *["stops"] + ["-"] * (len(header) - 2)))
                notes.append(f"{row.name}: {row.deadlock}")
                continue
            cells = (
                f"{one.gradients_per_s:.4g}",
                f"{one.gradients_per_s / best:.0%}",
                f"{one.staleness.mean:.2f}",
                str(one.staleness.max),
                f"{one.waiting_share:.0%}",
                f"{one.wasted_share:.0%}",
            )
            rows.append((row.name, *cells, *([_target(row)] if timed else [])))
        yield Section("", header, rows, notes)
        yield Section("", notes=[textwrap.fill(note, 80) for note in self._notes(timed)])

    def _notes(self, timed: bool) -> Iterator[str]:
        steps = [1e3 * worker.step_s for worker in self.workers]
        low, high = min(steps), max(steps)
        same = low == high
        yield (
            f"predicted, not measured: {len(steps)} workers, a step takes "
            + (f"{low:.4g} ms" if same else f"{low:.4g} to {high:.4g} ms")
            + f" ({self.source})"
        )
        yield "of ideal: over gradients/s of workers that never wait and share nothing"
        yield "staleness: updates by others between read and write; idle: waiting for others"
        if timed:
            yield f"target: time to {TARGET:.0%} of the first excess, {self.config.objective}"


def _target(row: PredictedStrategy) -> str:
    if row.target_s is None:
        return "-"
    return f"{row.target_s:.4g} s" if math.isfinite(row.target_s) else "never"


def compare(
    config: SimulateConfig, workers: Sequence[Worker] | None = None, source: str = ""
) -> WhatIf:
    """Simulate every strategy of the options.

    Args:
        config: the options.
        workers: in place of those of the options; the same number.
        source: of these workers.

    Raises:
        ConfigError, DataError: the options contradict each other.
    """
    there = workers_of(config, workers)
    events = events_of(config)
    return WhatIf(
        config=config,
        workers=there,
        source=source or config.times,
        rows=[_row(name, config, there, events) for name in chosen(config)],
    )


def _row(
    name: str, config: SimulateConfig, workers: Sequence[Worker], events: Sequence[Event]
) -> PredictedStrategy:
    scheme = {**TRAINING, **DEADLOCKING}[name](config)
    if name == "serial":
        workers = [min(workers, key=lambda worker: worker.step_s)]
        events = ()
    if name in DEADLOCKING:  # a worker that waits for ever shows when the others have finished
        each = math.ceil(2 * config.updates / len(workers))
        workers = [replace(worker, steps=each) for worker in workers]
    try:
        together = len(workers) if name.startswith("sync") else 1
        prediction = simulate(
            workers,
            scheme,
            updates=max(1, config.updates // together),
            warm_up=0 if events else None,
            cores=config.cores,
            seed=config.seed,
            events=events,
        )
        target_s = None
        if config.objective != "none":
            target_s = best_time(workers, scheme, objective_of(config), config, events)
    except Deadlock as deadlock:
        return PredictedStrategy(name=name, deadlock=str(deadlock))
    return PredictedStrategy(name=name, prediction=prediction, target_s=target_s)


# -- toy problems ----------------------------------------------------------------------------------


def objective_of(config: SimulateConfig) -> Objective:
    """The problem that `objective` names."""
    if config.objective == "logistic":
        return SparseLogistic(examples=2000, features=200, nonzeros=5, seed=config.seed)
    return Quadratic(tuple(0.1 * 10 ** (k / 19) for k in range(20)), noise=0.3)


def best_time(
    workers: Sequence[Worker],
    scheme: Scheme,
    objective: Objective,
    config: SimulateConfig,
    events: Sequence[Event] = (),
) -> float:
    """Seconds until a toy problem is solved to `TARGET`, at the best step size of `RATES`.

    Args:
        workers: at least one.
        scheme: how they train together.
        objective: the problem.
        config: the most updates, the cores, and the seed.
        events: deaths and joins.
    """
    first = objective.excess(objective.start())
    seconds = math.inf
    for rate in RATES:
        learner = Learner(objective, lr=rate, seed=config.seed, target=TARGET * first)
        machine = descend(
            workers,
            scheme,
            learner,
            updates=config.updates,
            cores=config.cores,
            seed=config.seed,
            events=events,
        )
        if learner.reached is not None:
            seconds = min(seconds, learner.reached[0])
        if seconds < machine.state.now / 4:
            break  # smaller steps only take longer
    return seconds
