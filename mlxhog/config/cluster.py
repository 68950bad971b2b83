"""The cluster that a run joins: `--cluster HOST:PORT`, and its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from mlxhog.config.choices import CLUSTERS, Choice, Kind
from mlxhog.config.options import option
from mlxhog.errors import ConfigError, shown

ADDRESS = re.compile(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:.%]+\]):(?P<port>\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class Cluster(Choice):
    """Rounds of an outer optimizer between machines, on torchft (`mlxhog/cluster/`)."""

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
        None, "the shared secret that mlxhog cluster start printed", flat="cluster_token"
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
        0.9, "Nesterov momentum of the outer step", low=0, below=1, flat="cluster_outer_momentum"
    )

    @property
    def host(self) -> str:
        """Host of the lighthouse."""
        return self._parts["host"].strip("[]")

    @property
    def port(self) -> int:
        """Port of the lighthouse."""
        return int(self._parts["port"])

    @property
    def _parts(self) -> re.Match[str]:
        match = ADDRESS.fullmatch(self.address)
        assert match is not None  # `broken_rules` has refused all others
        return match

    def broken_rules(self) -> Iterable[str]:
        """Yield an address that cannot be one."""
        match = ADDRESS.fullmatch(self.address)
        if not self.address:
            yield "address: none is given; add --cluster HOST:PORT as cluster start prints it"
        elif match is None or not 0 < int(match["port"]) < 2**16:
            yield (
                f"address: {shown(self.address)}; wanted HOST:PORT as mlxhog cluster start prints "
                "it, such as 192.168.1.5:8600"
            )


@CLUSTERS.checked_by
def _check(choice: type[Choice]) -> None:
    if not issubclass(choice, Cluster):
        raise ConfigError("it is not based on mlxhog.config.cluster.Cluster")


CLUSTERS.register(Cluster)
