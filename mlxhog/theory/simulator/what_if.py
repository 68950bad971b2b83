"""`mlxhog simulate`: its options, and every strategy on one set of workers, side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxhog.base.quantities import format_bytes, parse_duration_s
from mlxhog.config.options import convert_fields, option
from mlxhog.config.rules import Slowdown, parse_slowdowns
from mlxhog.errors import ConfigError, DataError, did_you_mean
from mlxhog.report.table import Section
from mlxhog.theory.simulator import Event, Prediction, Simulation, simulate, times
from mlxhog.theory.simulator.links import FLOAT_BYTES, FORM, ClusterRounds, Link, sent_bytes
from mlxhog.theory.simulator.objectives import Learner, Quadratic
from mlxhog.theory.simulator.schemes import (
    SSP,
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

BOWL = Quadratic(tuple(0.1 * 10 ** (k / 19) for k in range(20)), noise=0.3)
RATES = tuple(2.0**-k for k in range(9))
"""Step sizes that a toy training tries, as multiples of the problem's largest."""

# -- options ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Options of `mlxhog simulate`."""

    workers: int = option(4, "number of workers", low=1, high=1000)
    times: str = option("lognormal:100ms:0.2", f"time of a gradient: {times.forms()}")
    slow: str | None = option(
        None,
        "workers that are slower, as --slow of train: 1=10, 0=random:0.1:6, 2=late:30s",
    )
    kill: str | None = option(
        None,
        "deaths: RANK=TIME, or RANK=TIME:DOWN if it returns after that time; such as 1=30s:5s",
    )
    join: str | None = option(None, "workers that join later: RANK=TIME; such as 3=1m")
    strategies: str = option("all", "strategies to compare, such as hogwild,sync; or all")
    read: float = option(0.0, "time to copy the parameters", unit="s", low=0)
    apply: float = option(0.0, "time to add a step to all parameters", unit="s", low=0)
    sync_time: float = option(0.0, "time of a barrier, or of a merge of copies", unit="s", low=0)
    machines: int = option(1, "over which the workers are dealt out in turn", low=1)
    link: str | None = option(None, f"between machines: {FORM}")
    params: int = option(1_000_000, "parameters of the model, which links carry", low=1)
    round_every: float = option(10.0, "time between two rounds of cluster", unit="s", above=0)
    round_dtype: str = option(
        "float32", "of the parameters in a round of cluster", choices=("float32", "bfloat16")
    )
    period: int = option(16, "steps between two merges of local_sgd and diloco", low=1)
    replicas: int | None = option(
        None, "of diloco; auto is half the workers, one at least", low=1, none="auto"
    )
    slack: int = option(2, "steps that ssp lets a worker run ahead", low=0)
    backup_workers: int = option(1, "workers that rounds of sync_backup do not wait for", low=0)
    cores: int | None = option(
        None, "of the machine, shared by the workers; auto is one for each", low=1, none="auto"
    )
    objective: str = option(
        "none",
        "also train a small problem to 1 % of its first excess, at the best of nine step sizes",
        choices=("none", "quadratic"),
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
        if (self.machines > 1) != (self.link is not None):
            raise ConfigError(
                f"machines is {self.machines} and link {self.link}; several machines need a link "
                "(--machines 2 --link 100Mbit:50ms), one has none"
            )
        if self.workers % self.machines:
            raise ConfigError(
                f"workers is {self.workers}, which {self.machines} machines cannot share evenly; "
                f"give a multiple of {self.machines}"
            )

    @property
    def round_s(self) -> float:
        """Seconds of a barrier or a merge, with the link's average of all parameters."""
        if self.link is None:
            return self.sync_time
        over_s = Link.parse(self.link).all_reduce_s(FLOAT_BYTES * self.params, self.machines)
        return self.sync_time + over_s


def _replicas(config: SimulateConfig) -> int:
    if config.replicas is not None:
        return config.replicas
    if config.machines > 1:
        return config.machines
    half = max(1, config.workers // 2)
    return next(n for n in range(half, 0, -1) if config.workers % n == 0)


def _cluster(config: SimulateConfig) -> ClusterRounds:
    if config.link is None:
        raise ConfigError(
            "cluster trains on several machines; add --machines 2 --link 100Mbit:50ms"
        )
    return ClusterRounds(
        machines=config.machines,
        link=Link.parse(config.link),
        n_params=config.params,
        round_every_s=config.round_every,
        float_bytes=FLOAT_BYTES if config.round_dtype == "float32" else 2,
    )


SCHEMES: Mapping[str, Callable[[SimulateConfig], Scheme]] = {
    "serial": lambda c: Hogwild(),
    "hogwild": lambda c: Hogwild(),
    "locked": lambda c: Locked(),
    "async_ps": lambda c: ParameterServer(),
    "ssp": lambda c: SSP(c.slack),
    "round_robin": lambda c: RoundRobin(c.sync_time),
    "sync": lambda c: Sync(round_s=c.round_s),
    "sync_speed": lambda c: Sync(round_s=c.round_s, by_speed=True),
    "sync_backup": lambda c: Sync(min(c.backup_workers, c.workers - 1), round_s=c.round_s),
    "local_sgd": lambda c: OuterLoop(c.period, round_s=c.round_s),
    "diloco": lambda c: OuterLoop(c.period, _replicas(c), c.round_s, "diloco"),
    "cluster": _cluster,
    "avg_runs": lambda c: OuterLoop(None, name="avg_runs"),
}
"""Schemes by name: `sync_speed` is sync with shares by speed, `sync_backup` has backup workers."""


def _strategies(config: SimulateConfig) -> list[str]:
    """Return the names that `strategies` lists."""
    if config.strategies == "all":
        hidden = {"sync_speed"} if config.slow is None else set()
        hidden |= {"cluster"} if config.machines == 1 else {"avg_runs"}
        return [name for name in SCHEMES if name not in hidden]
    names = [name.strip() for name in config.strategies.split(",")]
    for name in names:
        if name not in SCHEMES:
            raise ConfigError(
                f"--strategies names {name!r}; wanted all, or some of {', '.join(SCHEMES)}"
                + did_you_mean(name, SCHEMES)
            )
    return list(dict.fromkeys(names))


def _workers(config: SimulateConfig, recorded: Sequence[Worker] | None) -> list[Worker]:
    """Return the workers of the options, or recorded ones, with their slowdowns."""
    try:
        time = times.parse(config.times)
        slow = parse_slowdowns(config.slow)
    except (ValueError, DataError) as error:
        raise ConfigError(f"simulate: {error}") from error
    _check_ranks("--slow", slow, config.workers)
    over_s = 0.0
    if config.link is not None:  # send a step, and receive the parameters
        over_s = 2 * Link.parse(config.link).transfer_s(FLOAT_BYTES * config.params)
    ours = recorded or [
        Worker(name=f"worker {rank}", compute=time, read_s=config.read, apply_s=config.apply)
        for rank in range(config.workers)
    ]

    def slowed(time: times.ComputeTime, how: Slowdown) -> times.ComputeTime:
        if how.probability < 1:
            return replace(time, held_up=(how.probability, how.factor))
        return time.scaled(how.factor)

    return [
        replace(one, exchange_s=over_s, compute=slowed(one.compute, slow.get(rank, Slowdown())))
        for rank, one in enumerate(ours)
    ]


def _events(config: SimulateConfig) -> list[Event]:
    """Return the deaths and joins of the options."""
    late = {r: how.late_s for r, how in parse_slowdowns(config.slow).items() if how.late_s}
    events = [Event(at_s, rank, joins=True) for rank, at_s in late.items()]
    for rank, (at_s,) in _moments("--join", config.join, "RANK=TIME").items():
        events.append(Event(at_s, rank, joins=True))
    for rank, (at_s, *more) in _moments("--kill", config.kill, _OR_BACK).items():
        events.append(Event(at_s, rank, joins=False))
        events += [Event(at_s + down_s, rank, joins=True) for down_s in more]
    _check_ranks("an event", {event.rank: event for event in events}, config.workers)
    return sorted(events)


_OR_BACK = "RANK=TIME or RANK=TIME:DOWN"


def _moments(flag: str, text: str | None, form: str) -> dict[int, list[float]]:
    """Return the times of each rank, as many as the form has."""
    moments: dict[int, list[float]] = {}
    for part in [] if text is None else text.split(","):
        rank, equals, words = part.strip().partition("=")
        try:
            values = [parse_duration_s(word) for word in words.split(":")]
            if not (equals and rank.isdecimal()) or min(values) < 0:
                raise ValueError
            if len(values) > 1 + form.count(":"):
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"{flag} has {part.strip()!r}; wanted {form} for each, such as 1=30s"
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
        prediction: of its speed.
        target_s: seconds to the toy problem's target, at the best step size; None without a toy
            problem, or if no step size reaches it.
        sent_bytes_per_s: by each machine; None on one machine.
        rounds: what rounds of cluster did with the links; None for the others.
    """

    name: str
    prediction: Prediction
    target_s: float | None = None
    sent_bytes_per_s: float | None = None
    rounds: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        more = {name: getattr(self, name) for name in ("target_s", "sent_bytes_per_s", "rounds")}
        return {"strategy": self.name, **self.prediction.to_json(), **more}

    def cells(self, best: float) -> Iterator[str]:
        """Yield its cells of the table; `best` are the gradients/s of workers that never wait."""
        one = self.prediction
        yield self.name
        yield f"{one.gradients_per_s:.4g}"
        yield f"{one.gradients_per_s / best:.0%}"
        yield f"{one.staleness.mean:.2f}"
        yield str(one.staleness.max)
        yield f"{one.waiting_share:.0%}"
        yield f"{one.wasted_share:.0%}"


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
        reached = [(row.target_s, row.name) for row in self.rows if row.target_s is not None]
        timed = sorted(reached, key=lambda one: one[0])
        if timed:
            (first_s, first), *others = timed
            text = f"{first} reaches the target first, after {first_s:.3g} s"
            if others and first_s:
                text += f"; {others[0][1]} takes {others[0][0] / first_s:.2f} times as long"
            return text
        rate = {row.name: row.prediction.gradients_per_s for row in self.rows}
        best = max(rate, key=lambda name: rate[name])
        text = f"{best} computes most: {rate[best]:.4g} gradients/s"
        if "sync" in rate and best != "sync":
            text += f", {rate[best] / rate['sync']:.2f} times sync"
        return text

    def to_json(self) -> dict[str, Any]:
        """Return what `simulate --json` prints."""
        return {"answer": self.answer, "strategies": [row.to_json() for row in self.rows]}

    def sections(self) -> Iterator[Section]:
        """Arrange the comparison for `mlxhog.report.table.show`, 80 columns wide."""
        yield Section(textwrap.fill(self.answer, 80))
        config, timed = self.config, self.config.objective != "none"
        linked = config.machines > 1
        header = ["strategy", "gradients/s", "of ideal", "staleness", "largest", "idle", "wasted"]
        header += ["target"] * timed + ["sent/s"] * linked
        best = sum(1 / worker.step_s for worker in self.workers)
        rows = []
        for row in self.rows:
            target = "never" if row.target_s is None else f"{row.target_s:.4g} s"
            sent = format_bytes(row.sent_bytes_per_s or 0.0)
            rows.append((*row.cells(best), *[target] * timed, *[sent] * linked))
        steps = sorted({1e3 * worker.step_s for worker in self.workers})
        took = " to ".join(f"{ms:.4g}" for ms in dict.fromkeys((steps[0], steps[-1])))
        notes = [
            f"predicted, not measured: {len(self.workers)} workers, a step takes {took} ms "
            f"({self.source})",
            "of ideal: over gradients/s of workers that never wait and share nothing; staleness: "
            "updates by others between read and write; idle: waiting for others",
        ]
        for used in (row.rounds for row in self.rows if row.rounds is not None):
            notes.append(f"cluster: {used['rounds']} rounds, {used['share']:.0%} of the time on "
                         f"the link ({config.link})")  # fmt: skip
        if timed:
            notes.append(f"target: time to {TARGET:.0%} of the first excess, {config.objective}")
        yield Section("", header, rows, [textwrap.fill(note, 80) for note in notes])


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
    there, events = _workers(config, workers), _events(config)
    return WhatIf(
        config=config,
        workers=there,
        source=source or config.times,
        rows=[_row(name, config, there, events) for name in _strategies(config)],
    )


def _row(
    name: str, config: SimulateConfig, workers: Sequence[Worker], events: Sequence[Event]
) -> PredictedStrategy:
    scheme, clustered = SCHEMES[name](config), name == "cluster"
    if name == "serial":
        workers = [replace(min(workers, key=lambda worker: worker.step_s), exchange_s=0.0)]
        events = ()
    together = len(workers) if name.startswith("sync") else 1
    prediction = simulate(
        workers,
        scheme,
        updates=max(1, config.updates // together),
        warm_up=0 if events or clustered else None,
        cores=config.cores,
        seed=config.seed,
        events=events,
    )
    timed = config.objective != "none"
    target_s = best_time(workers, scheme, BOWL, config, events) if timed else None
    return PredictedStrategy(
        name=name,
        prediction=prediction,
        target_s=None if target_s == math.inf else target_s,
        sent_bytes_per_s=_sent_per_s(name, scheme, prediction, config),
        rounds=scheme.use(prediction.seconds) if isinstance(scheme, ClusterRounds) else None,
    )


def _sent_per_s(
    name: str, scheme: Scheme, prediction: Prediction, config: SimulateConfig
) -> float | None:
    """Bytes that each machine sends in a second; None on one machine."""
    if config.link is None:
        return None
    once = sent_bytes(FLOAT_BYTES * config.params, config.machines)
    match scheme:
        case _ if name == "serial":
            return 0.0
        case ClusterRounds():
            return scheme.use(prediction.seconds)["bytes_per_s"]
        case Sync():
            return prediction.updates_per_s * once
        case OuterLoop():
            replicas = scheme.replicas or config.workers
            per_merge = replicas * scheme.period if scheme.period else math.inf
            return prediction.gradients_per_s / per_merge * once
    return prediction.gradients_per_s / config.machines * FLOAT_BYTES * config.params


def best_time(
    workers: Sequence[Worker],
    scheme: Scheme,
    objective: Quadratic,
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
    first, seconds = objective.excess(objective.start()), math.inf
    machine: Any = {"cores": config.cores, "seed": config.seed, "events": events}
    for rate in RATES:
        learner = Learner(objective, lr=rate, seed=config.seed, target=TARGET * first)
        simulation = Simulation(workers, scheme, learner=learner, **machine)
        simulation.run_until(config.updates)
        if learner.reached is not None:
            seconds = min(seconds, learner.reached[0])
        if seconds < simulation.state.now / 4:
            break  # smaller steps only take longer
    return seconds
