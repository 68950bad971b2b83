"""The strategies that advice can name: those of this tree, with their options and their schemes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mlxhog.theory.advisor.profile import Profile
from mlxhog.theory.simulator.gates import SSP
from mlxhog.theory.simulator.schemes import (
    Hogwild,
    OuterLoop,
    ParameterServer,
    RoundRobin,
    Scheme,
    Sync,
)

LEAST_PERIOD, MOST_PERIOD = 4, 512
SSP_SLACK = 3
LOCAL_COST = 0.01
"""Steps that each local step beyond the first costs in all, as a share, before it is measured."""

STALENESS_COST = 0.01
"""Samples that a mean staleness of one costs where every update meets every other, likewise."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: for people.
        strategy: as --strategy takes it.
        options: further options of train.
        scheme: in the simulator.
        repeats: whether reruns are equal bit for bit.
        lateness: mean staleness of its gradients, in updates.
        period: local steps between merges; 1 for none.
    """

    name: str
    strategy: str
    options: Mapping[str, Any]
    scheme: Scheme
    repeats: bool = False
    lateness: float = 0.0
    period: int = 1

    @property
    def family(self) -> str:
        """How its workers meet: serial, rounds, asynchronous or local."""
        if self.period > 1:
            return "local"
        if self.lateness:
            return "asynchronous"
        return "serial" if self.strategy == "serial" else "rounds"

    @property
    def flags(self) -> str:
        """What to add to `mlxhog train`."""
        words = [f"--{name.replace('_', '-')} {value}" for name, value in self.options.items()]
        return " ".join([f"--strategy {self.strategy}", *words])


def _local(name: str, options: Mapping[str, Any], profile: Profile, round_s: float) -> Arm:
    period = min(MOST_PERIOD, max(LEAST_PERIOD, profile.period()))
    return Arm(
        name,
        name,
        {"average_every": period, **options},
        OuterLoop(period, round_s=round_s, name=name, corrected=name == "scaffold"),
        repeats=True,
        period=period,
    )


_ARMS: Mapping[str, Callable[[Profile, float], Arm]] = {
    "serial": lambda p, s: Arm(
        "serial", "serial", {"workers": p.backend} if p.backend else {}, Hogwild(), repeats=True
    ),
    "sync": lambda p, s: Arm("sync", "sync", {}, Sync(round_s=s), repeats=True),
    "sync by speed": lambda p, s: Arm(
        "sync by speed", "sync", {"sync_shares": "speed"}, Sync(round_s=s, by_speed=True)
    ),
    "hogwild": lambda p, s: Arm("hogwild", "hogwild", {}, Hogwild(), lateness=p.count - 1),
    "async_ps": lambda p, s: Arm(
        "async_ps", "async_ps", {}, ParameterServer(), lateness=p.count - 1
    ),
    "ssp": lambda p, s: Arm(
        "ssp", "ssp", {"slack": SSP_SLACK}, SSP(SSP_SLACK), lateness=p.count - 1
    ),
    "round_robin": lambda p, s: Arm(
        "round_robin", "round_robin", {}, RoundRobin(), repeats=True, lateness=p.count - 1
    ),
    "local_sgd": lambda p, s: _local("local_sgd", {}, p, s),
    "avg_runs": lambda p, s: _local("avg_runs", {}, p, s),
    "scaffold": lambda p, s: _local("scaffold", {}, p, s),
    "fedprox": lambda p, s: _local("fedprox", {}, p, s),
    "diloco": lambda p, s: _local("diloco", {}, p, s),
}
"""By name: what makes an arm of a profile and the seconds of a round's barrier."""


def arms(profile: Profile, strategies: Collection[str]) -> dict[str, Arm]:
    """Every arm that this tree has, by name.

    Where local_sgd is there, averaged runs are not offered beside it.

    Args:
        profile: whose round and period they take.
        strategies: that `mlxhog train` has.
    """
    worker = profile.workers[0]
    shares = (profile.count + 1) / (2 * profile.count) + 1
    own_s = shares * worker.read_s + worker.apply_s / profile.count
    barrier_s = max(0.0, profile.sync_s - own_s)
    known = {name: make(profile, barrier_s) for name, make in _ARMS.items()}
    if "local_sgd" in strategies:
        del known["avg_runs"]
    return {name: arm for name, arm in known.items() if arm.strategy in strategies}
