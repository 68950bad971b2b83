"""The cluster that a run joins: `--cluster HOST:PORT`, and its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from mlxhog.config.choices import CLUSTERS, Choice, Kind
from mlxhog.config.options import option
from mlxhog.errors import ConfigError, shown

ADDRESS = re.compile(r"[\w.-]+:(?P<port>\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class Cluster(Choice):
    """Rounds of an outer optimizer between machines, on torchft (`mlxhog/cluster/`).

    DiLoCo's outer momentum of .9 keeps the movements of ten rounds, too many for runs of minutes:
    runs of three end .07 bits per byte higher (`benchmarks/across_machines.py --only rounds`).
    """

    kind: ClassVar[Kind] = CLUSTERS
    name: ClassVar[str] = "torchft"
    about: ClassVar[str] = "machines that come and go, averaged by wall clock"

    address: str = option("", "HOST:PORT of the lighthouse that mlxhog cluster start began")
    own_address: str | None = option(
        None,
        "address of this machine by which the others reach it; auto is that of the route to the "
        "lighthouse",
        none="auto",
        flat="cluster_own_address",
    )
    machine: str | None = option(
        None, "name of this machine in reports; auto is its host name", none="auto",
        flat="cluster_machine",
    )  # fmt: skip
    token: str | None = option(
        None,
        "the shared secret that mlxhog cluster start printed; auto is that of the environment, "
        "MLXHOG_CLUSTER_TOKEN",
        none="auto",
        flat="cluster_token",
    )
    round_every: float = option(10.0, "time between two rounds", unit="s", above=0)
    round_dtype: str = option(
        "float32",
        "numbers on the wire; bfloat16 halves the bytes, and its rounding is made up for in the "
        "next round (error feedback)",
        choices=("float32", "bfloat16"),
    )
    outer_lr: float = option(0.7, "step size of the outer step", above=0, flat="cluster_outer_lr")
    outer_momentum: float = option(
        0.7, "Nesterov momentum of the outer step", low=0, below=1, flat="cluster_outer_momentum"
    )
    timeout_s: float | None = option(
        None,
        "limit of each join, transfer and average, above round_every, because a machine that joins "
        "waits for the others' next round; auto is six times round_every, and at least 60 s",
        none="auto",
        unit="s",
        above=0,
        flat="cluster_timeout_s",
    )
    stop_workers: bool = option(
        False, "stop the workers for each round, as DiLoCo does, instead of adding beside them"
    )

    @property
    def limit_s(self) -> float:
        """Limit of each call of a group."""
        return max(60.0, 6 * self.round_every) if self.timeout_s is None else self.timeout_s

    def broken_rules(self) -> Iterable[str]:
        """Yield an address that cannot be one, and a limit below the time between rounds."""
        match = ADDRESS.fullmatch(self.address)
        if not self.address:
            yield "address: none is given; add --cluster HOST:PORT as cluster start prints it"
        elif match is None or not 0 < int(match["port"]) < 2**16:
            yield (
                f"address: {shown(self.address)}; wanted HOST:PORT as mlxhog cluster start prints "
                "it, a name or an IPv4 address, such as 192.168.1.5:8600"
            )
        if self.timeout_s is not None and self.timeout_s <= self.round_every:
            yield (
                f"timeout_s: {self.timeout_s:g} s, not above round_every, {self.round_every:g} s, "
                "so a machine could not wait for the next round of the others; set more, such as "
                f"{6 * self.round_every:g}s"
            )


@CLUSTERS.checked_by
def _check(choice: type[Choice]) -> None:
    if not issubclass(choice, Cluster):
        raise ConfigError("it is not based on mlxhog.config.cluster.Cluster")


CLUSTERS.register(Cluster)
