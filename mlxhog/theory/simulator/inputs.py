"""The options of `mlxhog simulate`: its strategies by name, its workers, machines and events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mlxhog.config.options import convert_fields, option
from mlxhog.config.rules import Slowdown, parse_slowdowns
from mlxhog.errors import ConfigError, DataError, did_you_mean
from mlxhog.files.quantities import parse_duration_s
from mlxhog.theory.simulator import Event, times
from mlxhog.theory.simulator.gates import SSP, PushGate, VersionBound
from mlxhog.theory.simulator.links import FLOAT_BYTES, FORM, ClusterRounds, Link, Outage
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
    machines: int = option(1, "over which the workers are dealt out in turn", low=1)
    link: str | None = option(None, f"between machines: {FORM}")
    params: int = option(1_000_000, "parameters of the model, which links carry", low=1)
    round_every: float = option(10.0, "time between two rounds of cluster", unit="s", above=0)
    round_dtype: str = option(
        "float32", "of the parameters in a round of cluster", choices=("float32", "bfloat16")
    )
    unplug: str | None = option(
        None,
        "machines without a link for a while, of cluster: MACHINE=TIME:DOWN; such as 1=30s:60s",
    )
    stop_workers: bool = option(False, "no step begins during a round of cluster")
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
        if self.unplug is not None and self.link is None:
            raise ConfigError("unplug needs several machines, as in --machines 2 --link 100Mbit")

    def all_reduce_s(self) -> float:
        """Seconds in which links average all parameters; 0 on one machine."""
        if self.link is None:
            return 0.0
        return Link.parse(self.link).all_reduce_s(FLOAT_BYTES * self.params, self.machines)


# -- strategies by name ----------------------------------------------------------------------------


def _replicas(config: SimulateConfig) -> int:
    if config.replicas is not None:
        return config.replicas
    if config.machines > 1:
        return config.machines
    half = max(1, config.workers // 2)
    return next(n for n in range(half, 0, -1) if config.workers % n == 0)


def _round_s(config: SimulateConfig) -> float:
    return config.sync_time + config.all_reduce_s()


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
        outages=tuple(
            Outage(machine, *times)
            for machine, times in _moments("--unplug", config.unplug, 2, least=2).items()
        ),
        stop_workers=config.stop_workers,
    )


TRAINING: Mapping[str, Callable[[SimulateConfig], Scheme]] = {
    "serial": lambda c: Hogwild(),
    "hogwild": lambda c: Hogwild(),
    "locked": lambda c: Locked(),
    "async_ps": lambda c: ParameterServer(),
    "ssp": lambda c: SSP(c.slack),
    "version_bound": lambda c: VersionBound(c.max_staleness),
    "round_robin": lambda c: RoundRobin(c.sync_time),
    "sync": lambda c: Sync(round_s=_round_s(c)),
    "sync_speed": lambda c: Sync(round_s=_round_s(c), by_speed=True),
    "sync_backup": lambda c: Sync(
        backups=min(c.backup_workers, c.workers - 1), round_s=_round_s(c)
    ),
    "local_sgd": lambda c: OuterLoop(c.period, round_s=_round_s(c)),
    "diloco": lambda c: OuterLoop(c.period, _replicas(c), _round_s(c), "diloco"),
    "cluster": _cluster,
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
        hidden = {"sync_speed"} if config.slow is None else set()
        hidden |= {"cluster"} if config.machines == 1 else {"avg_runs"}
        return [name for name in TRAINING if name not in hidden]
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
    over_s = 0.0
    if config.link is not None:  # send a step, and receive the parameters
        over_s = 2 * Link.parse(config.link).transfer_s(FLOAT_BYTES * config.params)
    ours = recorded or [
        Worker(name=f"worker {rank}", compute=time, read_s=config.read, apply_s=config.apply)
        for rank in range(config.workers)
    ]
    ours = [replace(worker, exchange_s=over_s) for worker in ours]
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


def _moments(flag: str, text: str | None, most: int, least: int = 1) -> dict[int, list[float]]:
    moments: dict[int, list[float]] = {}
    for part in [] if text is None else text.split(","):
        rank, equals, words = part.strip().partition("=")
        try:
            values = [parse_duration_s(word) for word in words.split(":")]
            if not (equals and rank.isdecimal()) or min(values) < 0:
                raise ValueError
            if not least <= len(values) <= most:
                raise ValueError
        except ValueError:
            form = " or ".join(("RANK=TIME", "RANK=TIME:DOWN")[least - 1 : most])
            example = "1=30s" if least == 1 else "1=30s:60s"
            raise ConfigError(
                f"{flag} has {part.strip()!r}; wanted {form} for each, such as {example}"
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
