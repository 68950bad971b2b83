"""The options of a run that joins a cluster: `--cluster HOST:PORT`, and its numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from mlxhog.config.choices import Rules
from mlxhog.config.options import is_set, option
from mlxhog.errors import shown

_ADDRESS = re.compile(r"[\w.-]+:(?P<port>\d{1,5})")
_cluster = partial(option, group="cluster")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Rounds of an outer optimizer between machines, on torchft (`mlxhog/cluster/`).

    DiLoCo's outer momentum of .9 keeps the movements of ten rounds, too many for runs of minutes:
    runs of three end .07 bits per byte higher (`benchmarks/across_machines.py --only rounds`).
    """

    cluster: str | None = _cluster(
        None,
        "train one model with other machines: HOST:PORT of the lighthouse that mlxhog cluster "
        "start began",
        none="off",
    )
    cluster_own_address: str | None = _cluster(
        None,
        "address of this machine by which the others reach it; auto is that of the route to the "
        "lighthouse",
        none="auto",
    )
    cluster_machine: str | None = _cluster(
        None, "name of this machine in reports; auto is its host name", none="auto"
    )
    cluster_token: str | None = _cluster(
        None,
        "the shared secret that mlxhog cluster start printed; auto is that of the environment, "
        "MLXHOG_CLUSTER_TOKEN",
        none="auto",
    )
    round_every: float = _cluster(10.0, "time between two rounds", unit="s", above=0)
    round_dtype: str = _cluster(
        "float32",
        "numbers on the wire; bfloat16 halves the bytes",
        choices=("float32", "bfloat16"),
    )
    cluster_outer_lr: float = _cluster(0.7, "step size of the outer step", above=0)
    cluster_outer_momentum: float = _cluster(
        0.7, "Nesterov momentum of the outer step", low=0, below=1
    )
    cluster_timeout_s: float | None = _cluster(
        None,
        "limit of each join, transfer and average, above round_every, because a machine that joins "
        "waits for the others' next round; auto is six times round_every, and at least 60 s",
        none="auto",
        unit="s",
        above=0,
    )

    @property
    def cluster_limit_s(self) -> float:
        """Limit of each call of a group."""
        timeout_s = self.cluster_timeout_s
        return max(60.0, 6 * self.round_every) if timeout_s is None else timeout_s

    def only_cluster(self) -> Cluster:
        """Return these options alone, for the process of the link."""
        return Cluster(**{one.name: getattr(self, one.name) for one in fields(Cluster)})


def _is_no_address(config: Any) -> bool:
    match = _ADDRESS.fullmatch(config.cluster or "x:1")
    return match is None or not 0 < int(match["port"]) < 2**16


RULES: Rules = (
    ("cluster", lambda c: _is_no_address(c) and shown(c.cluster),
     "is {x}; wanted HOST:PORT as mlxhog cluster start prints it, a name or an IPv4 address, such "
     "as 192.168.1.5:8600"),
    ("cluster_timeout_s",
     lambda c: c.cluster and c.cluster_timeout_s and c.cluster_timeout_s <= c.round_every,
     "{0.cluster_timeout_s:g} s, not above round_every, {0.round_every:g} s, so a machine could "
     "not wait for the next round of the others; set six times that"),
    *((one.name, lambda c, name=one.name: c.cluster is None and is_set(c, name),
       "is for a run with other machines; add --cluster HOST:PORT as cluster start prints it")
      for one in fields(Cluster) if one.name != "cluster"),
)  # fmt: skip
