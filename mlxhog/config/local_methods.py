"""Options of local methods: strategies whose workers train copies of the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mlxhog.config.options import is_set, option, options
from mlxhog.errors import shown

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig

LOCAL_STRATEGIES = ("avg_runs", "local_sgd", "fedprox", "scaffold", "diloco")
"""Strategies whose workers train copies of the parameters."""

AVERAGE_EVERY = 16
"""Steps of each worker between two averages where nobody says otherwise."""

_AVERAGED = LOCAL_STRATEGIES[1:]
OF_TEXT = ("split", "split_alpha", "split_by", "clients")
"""Options that divide documents."""

OWNERS: dict[str, tuple[str, ...]] = {
    "average_every": _AVERAGED,
    "local_after": ("local_sgd",),
    "local_work": _AVERAGED,
    "inner_state": _AVERAGED,
    "prox_mu": ("fedprox",),
    "prox": ("fedprox",),
    "replicas": ("diloco",),
    "outer_lr": ("diloco",),
    "outer_momentum": ("diloco",),
    **dict.fromkeys(OF_TEXT, LOCAL_STRATEGIES),
}
"""Options that only these strategies take."""

OWN_BASES = ("apollo", "apollo-mini", "soap")
"""Optimizers whose state lies in bases of each worker's own, so that it has no average."""

_local = partial(option, group="local methods")


@dataclass(frozen=True, kw_only=True)
class LocalMethods:
    """Options of local methods."""

    average_every: int | None = _local(
        None,
        "local_sgd, fedprox, scaffold, diloco: average the workers' own parameters whenever each "
        f"has taken this many; auto is {AVERAGE_EVERY}",
        unit="steps",
        low=1,
        none="auto",
    )
    local_after: int = _local(
        0,
        "local_sgd: average after every step until the run has taken this many (post-local SGD)",
        unit="steps",
        low=0,
    )
    local_work: str = _local(
        "equal",
        "steps of each worker between two averages: average_every for all, fewer for slower ones "
        "(speed), or numbers by rank such as 16,4",
    )
    inner_state: str = _local(
        "keep",
        "optimizer state of the workers when their parameters are averaged: it stays each one's "
        "own, is averaged as well, or begins anew",
        choices=("keep", "average", "reset"),
    )
    prox_mu: float = _local(
        0.01, "fedprox: pull of the last average on local steps; 0 is local_sgd", low=0
    )
    prox: str = _local(
        "grad",
        "fedprox: the pull is part of the gradient, or a step of its own beside the optimizer's",
        choices=("grad", "decoupled"),
    )
    replicas: int | None = _local(
        None,
        "diloco: copies of the parameters; the workers of each train it lock-free; auto is one "
        "for every worker",
        low=1,
        none="auto",
    )
    outer_lr: float = _local(0.7, "diloco: step size of the outer step", above=0)
    split: str = _local(
        "none",
        "text of the workers: any of it for all, or that of clients whose shares of each class of "
        "documents a Dirichlet distribution draws",
        choices=("none", "dirichlet"),
    )
    split_alpha: float = _local(
        1.0, "split=dirichlet: how alike the clients' texts are; 0 is a class for one client", low=0
    )
    split_by: str = _local(
        "auto",
        "split=dirichlet: classes of documents; auto is the party of sotu, ten parts of others",
        choices=("auto", "party", "president", "decade", "part", "document"),
    )
    clients: int | None = _local(
        None,
        "split=dirichlet: texts, of which each worker trains its own in turn; auto is one for "
        "every worker",
        low=1,
        none="auto",
    )
    outer_momentum: float = _local(
        0.9, "diloco: Nesterov momentum of the outer step", low=0, below=1
    )


def implied_strategy(config: TrainConfig) -> str | None:
    """The strategy that has what is asked for, where only one has."""
    for name, owners in OWNERS.items():
        if len(owners) == 1 and is_set(config, name):
            return owners[0]
    return None


def without_strategy(config: type[TrainConfig]) -> dict[str, object]:
    """The options that only some strategies take, as they are where nobody sets them."""
    return {name: options(config)[name].default for name in OWNERS}


def steps_by_rank(local_work: str) -> tuple[int, ...] | None:
    """Local steps of each rank, where `local_work` gives them.

    Raises:
        ValueError: it is neither a word nor such a list; the message continues "local_work: ".
    """
    if local_work in ("equal", "speed"):
        return None
    steps = local_work.split(",")
    if not all(one.strip().isascii() and one.strip().isdigit() and int(one) for one in steps):
        raise ValueError(
            f"is {shown(local_work)}; wanted equal, speed, or the steps of each worker by rank, "
            "such as 16,4"
        )
    return tuple(map(int, steps))


def contradictions(config: TrainConfig) -> list[tuple[str, str]]:
    """Pairs (option, what it contradicts and the way out)."""
    pairs: list[tuple[str, str]] = []
    if config.strategy not in LOCAL_STRATEGIES:
        return pairs
    if config.gpu_write.startswith("metal"):
        problem = f"{config.gpu_write}, but the CPU adds to each worker's own copy; leave it out"
        pairs.append(("gpu_write", problem))
    if config.moments == "shared":
        problem = "shared, but the runs are independent; leave it out, or use hogwild"
        pairs.append(("moments", problem))
    if config.inner_state == "average" and config.optimizer in OWN_BASES:
        problem = (
            f"average, but the state of {config.optimizer} lies in bases of its own in each "
            "worker; set inner_state=keep or reset, or take another optimizer"
        )
        pairs.append(("inner_state", problem))
    if config.determinism == "rounds" and config.local_work == "speed":
        problem = "speed follows measured times, so reruns differ; give steps by rank, or equal"
        pairs.append(("local_work", problem))
    if config.split == "none":
        for name in ("split_alpha", "split_by", "clients"):
            if is_set(config, name):
                pairs.append((name, "is for split=dirichlet; add that, or leave it out"))
    try:
        steps = steps_by_rank(config.local_work)
    except ValueError as error:
        return [*pairs, ("local_work", str(error))]
    if steps is not None and config.average_every is not None:
        problem = f"{config.average_every}, but local_work has the steps of each worker; leave one"
        pairs.append(("average_every", f"{problem} out"))
    return pairs
