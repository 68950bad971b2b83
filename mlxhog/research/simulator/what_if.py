"""What-if questions: every strategy on one set of workers, side by side, and their options."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlxhog.base.quantities import parse_duration_s
from mlxhog.config import rules
from mlxhog.config.options import option
from mlxhog.config.sources import ConfigBase
from mlxhog.errors import ConfigError, DataError, did_you_mean
from mlxhog.research.simulator import Prediction, simulate, times
from mlxhog.research.simulator.links import FLOAT_BYTES, FORM, ClusterRounds, Link, sent_bytes
from mlxhog.research.simulator.machine import Event, SimulatedStrategy, Simulation, Worker
from mlxhog.research.simulator.objectives import Quadratic, SimulatedSGD
from mlxhog.research.simulator.strategies import (
    OuterLoop,
    ParameterServer,
    SimulatedHogwild,
    SimulatedLocked,
    SimulatedRoundRobin,
    SimulatedSSP,
    SimulatedSync,
)

TARGET = 0.01  # share of the first suboptimality gap at which a toy training ends
BOWL = Quadratic(tuple(0.1 * 10 ** (k / 19) for k in range(20)), noise=0.3)
RATES = tuple(2.0**-k for k in range(9))
"""Learning rates that a toy training tries, as multiples of the problem's largest."""

# -- options ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, init=False)
class SimulateConfig(ConfigBase):
    """Options of `mlxhog research simulate`."""

    workers: int = option(4, "number of workers", low=1, high=1000)
    times: str = option("lognormal:100ms:0.2", f"time of a gradient: {times.forms()}")
    inject_stragglers: str | None = option(
        None, "stragglers, as --inject-stragglers of train: 1=10, 0=random:0.1:6, 2=late:30s"
    )
    kill: str | None = option(
        None, "kill workers: RANK=TIME, or RANK=TIME:DOWN to restart after DOWN, such as 1=30s:5s"
    )
    strategies: str = option("all", "strategies to compare, such as hogwild,sync; or all")
    read: float = option(0.0, "time to copy the parameters", unit="s", low=0)
    apply: float = option(0.0, "time to apply an update to all parameters", unit="s", low=0)
    machines: int = option(1, "machines, to which workers are assigned round-robin", low=1)
    link: str | None = option(None, f"link between machines: {FORM}")
    params: int = option(1_000_000, "model parameters that are sent over links", low=1)
    round_every: float = option(
        10.0, "time between two averaging rounds of cluster", unit="s", above=0
    )
    period: int = option(16, "local steps between two averages of local_sgd and diloco", low=1)
    replicas: int | None = option(
        None, "replicas of diloco; auto: half the workers, at least one", low=1, none="auto"
    )
    slack: int = option(2, "steps that ssp lets a worker run ahead", low=0)
    backup_workers: int = option(1, "workers that a step of sync_backup does not wait for", low=0)
    objective: str = option(
        "none",
        "also train a small problem to 1 % of its first suboptimality gap, at the best of nine "
        "learning rates",
        choices=("none", "quadratic"),
    )
    updates: int = option(5000, "gradients to simulate per strategy", low=10, high=10_000_000)
    seed: int = option(0, "random seed", low=0)

    def __post_init__(self) -> None:
        """Check the values together."""
        if (self.machines > 1) != (self.link is not None) or self.workers % self.machines:
            raise ConfigError(
                f"machines is {self.machines}, link {self.link}, workers {self.workers}; several "
                "machines need a link and equally many workers each (--machines 2 --link "
                "100Mbit:50ms --workers 4), one has no link"
            )

    @property
    def round_s(self) -> float:
        """Seconds of the links' average of all parameters."""
        if self.link is None:
            return 0.0
        return Link.parse(self.link).all_reduce_s(FLOAT_BYTES * self.params, self.machines)


def _replicas(config: SimulateConfig) -> int:
    if config.replicas is not None or config.machines > 1:
        return config.replicas or config.machines
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
    )


STRATEGIES: Mapping[str, Callable[[SimulateConfig], SimulatedStrategy]] = {
    "serial": lambda c: SimulatedHogwild(),
    "hogwild": lambda c: SimulatedHogwild(),
    "locked": lambda c: SimulatedLocked(),
    "async_ps": lambda c: ParameterServer(),
    "ssp": lambda c: SimulatedSSP(c.slack),
    "round_robin": lambda c: SimulatedRoundRobin(),
    "sync": lambda c: SimulatedSync(round_s=c.round_s),
    "sync_speed": lambda c: SimulatedSync(round_s=c.round_s, by_speed=True),
    "sync_backup": lambda c: SimulatedSync(min(c.backup_workers, c.workers - 1), round_s=c.round_s),
    "local_sgd": lambda c: OuterLoop(c.period, round_s=c.round_s),
    "diloco": lambda c: OuterLoop(c.period, _replicas(c), c.round_s),
    "cluster": _cluster,
    "avg_runs": lambda c: OuterLoop(None),
}
"""Strategies; `sync_speed` has speed-weighted shares, `sync_backup` has backup workers."""


def _strategies(config: SimulateConfig) -> list[str]:
    if config.strategies == "all":
        hidden = {"sync_speed"} if config.inject_stragglers is None else set()
        hidden |= {"cluster"} if config.machines == 1 else {"avg_runs"}
        return [name for name in STRATEGIES if name not in hidden]
    names = [name.strip() for name in config.strategies.split(",")]
    for name in names:
        if name not in STRATEGIES:
            raise ConfigError(
                f"--strategies names {name!r}; wanted all, or some of {', '.join(STRATEGIES)}"
                + did_you_mean(name, STRATEGIES)
            )
    return list(dict.fromkeys(names))


def _workers(config: SimulateConfig, recorded: Sequence[Worker] | None) -> list[Worker]:
    """Return the workers of the options, or recorded ones, with their slowdowns."""
    try:
        time = times.parse(config.times)
        slow = rules.parse_slowdowns(config.inject_stragglers)
    except (ValueError, DataError) as error:
        raise ConfigError(f"simulate: {error}") from error
    rules.check_ranks(config.inject_stragglers, config.workers)
    over_s = 0.0
    if config.link is not None:  # send a step, and receive the parameters
        over_s = 2 * Link.parse(config.link).transfer_s(FLOAT_BYTES * config.params)
    workers = []
    for rank in range(config.workers):
        one = Worker(name=f"worker {rank}", compute=time, read_s=config.read, apply_s=config.apply)
        one, how = recorded[rank] if recorded else one, slow.get(rank, rules.Slowdown())
        slowed = one.compute.scaled(how.factor)
        if how.probability < 1:
            slowed = replace(one.compute, held_up=(how.probability, how.factor))
        workers.append(replace(one, exchange_s=over_s, compute=slowed))
    return workers


def _events(config: SimulateConfig) -> list[Event]:
    """Return the deaths and returns of the options."""
    slow = rules.parse_slowdowns(config.inject_stragglers).items()
    events = [Event(how.delay_s, rank, joins=True) for rank, how in slow if how.delay_s]
    for part in [] if config.kill is None else config.kill.split(","):
        rank, _, times_of = part.strip().partition("=")
        at, _, down = times_of.partition(":")
        try:
            at_s, down_s = parse_duration_s(at), parse_duration_s(down or 0)
            events.append(Event(at_s, int(rank), joins=False))
        except ValueError:
            raise ConfigError(
                f"--kill has {part.strip()!r}; wanted RANK=TIME or RANK=TIME:DOWN for each, such "
                "as 1=30s"
            ) from None
        if down_s:
            events.append(Event(at_s + down_s, int(rank), joins=True))
    return events


# -- the comparison --------------------------------------------------------------------------------


def compare(
    config: SimulateConfig, recorded: Sequence[Worker] | None = None
) -> tuple[list[Worker], list[dict[str, Any]]]:
    """Simulate every strategy of the options; `recorded` workers replace theirs.

    Returns the workers, and per strategy its prediction; `target_s`, the seconds to the toy
    problem's target (None if it is not reached); `sent_bytes_per_s` of each machine (None for one);
    and the use of links by `rounds` of cluster.
    """
    workers, events = _workers(config, recorded), _events(config)
    return workers, [_row(name, config, workers, events) for name in _strategies(config)]


def _row(
    name: str, config: SimulateConfig, workers: Sequence[Worker], events: Sequence[Event]
) -> dict[str, Any]:
    strategy, target_s = STRATEGIES[name](config), math.inf
    rounds = strategy.use if isinstance(strategy, ClusterRounds) else None
    if name == "serial":
        workers = [replace(min(workers, key=lambda worker: worker.step_s), exchange_s=0.0)]
        events = ()
    per_update = len(workers) if isinstance(strategy, SimulatedSync) else 1  # gradients
    updates = max(1, config.updates // per_update)
    prediction = simulate(
        workers,
        strategy,
        updates=updates,
        warmup=0 if events or rounds else None,
        seed=config.seed,
        events=events,
    )
    if config.objective != "none":
        target_s = best_time(workers, strategy, BOWL, updates, config.seed, events)
    return {
        "strategy": name,
        "prediction": asdict(prediction),
        "target_s": None if target_s == math.inf else target_s,
        "sent_bytes_per_s": _sent_per_s(name, strategy, prediction, config),
        "rounds": None if rounds is None else rounds(prediction.seconds),
    }


def _sent_per_s(
    name: str, strategy: SimulatedStrategy, prediction: Prediction, config: SimulateConfig
) -> float | None:
    if config.link is None:
        return None
    n_bytes = FLOAT_BYTES * config.params
    once = sent_bytes(n_bytes, config.machines)
    match strategy:
        case _ if name == "serial":
            return 0.0
        case ClusterRounds():
            return strategy.use(prediction.seconds)["bytes_per_s"]
        case SimulatedSync():
            return prediction.updates_per_s * once
        case OuterLoop():
            per_merge = config.workers * strategy.period if strategy.period else math.inf
            return prediction.gradients_per_s / per_merge * once
    return prediction.gradients_per_s / config.machines * n_bytes


def best_time(
    workers: Sequence[Worker],
    strategy: SimulatedStrategy,
    objective: Quadratic,
    updates: int,
    seed: int,
    events: Sequence[Event] = (),
) -> float:
    """Seconds until a toy problem is solved to `TARGET`, at the best learning rate of `RATES`.

    Infinite if no learning rate solves it within so many updates.
    """
    target, seconds = TARGET * objective.suboptimality_gap(objective.start()), math.inf
    for rate in RATES:
        learner = SimulatedSGD(objective, lr=rate, seed=seed, target=target)
        simulation = Simulation(workers, strategy, seed=seed, events=events, learner=learner)
        simulation.run_until(updates)
        if learner.reached is not None:
            seconds = min(seconds, learner.reached[0])
        if seconds < simulation.now / 4:
            break  # smaller steps only take longer
    return seconds
