"""Groups that the links of these tests open in their own process."""

from __future__ import annotations

from dataclasses import replace

from mlxhog.cluster.group import ClusterError, Describe, Float32, Group, Membership, Offer
from mlxhog.cluster.identity import Identity
from mlxhog.config.cluster import Cluster
from mlxhog.errors import ConfigError
from tests.cluster.in_process import InProcess, Table


def alone(cluster: Cluster, offer: Offer, describe: Describe) -> Group:
    """A cluster of one machine."""
    return InProcess(Table(1), "a", offer)


class _Growing(InProcess):
    joins = 0

    def join(self) -> Membership:
        self.joins += 1
        member = super().join()
        return member if self.joins < 3 else replace(member, ids=(*member.ids, 1))

    def average(self, buffer: Float32, exact: int) -> bool:
        commits = super().average(buffer, exact)
        buffer[-2 * self.members :] /= self.members  # tokens; the second machine has none
        return commits

    @property
    def members(self) -> int:
        return 1 if self.joins < 3 else 2


def growing(cluster: Cluster, offer: Offer, describe: Describe) -> Group:
    """A cluster of one machine, and of two from its third join on."""
    return _Growing(Table(1), "a", offer)


class _Refusing(InProcess):
    def check(self, identity: Identity) -> None:
        raise ConfigError("cluster: the token is wrong; take that of the line that start printed")


def refusing(cluster: Cluster, offer: Offer, describe: Describe) -> Group:
    """A cluster that this machine does not fit."""
    return _Refusing(Table(1), "a", offer)


class _OutOfReach(InProcess):
    def join(self) -> Membership:
        raise ClusterError("cluster: no lighthouse answers")


def out_of_reach(cluster: Cluster, offer: Offer, describe: Describe) -> Group:
    """A cluster whose lighthouse does not answer."""
    return _OutOfReach(Table(1), "a", offer)


class _Faulty(InProcess):
    def join(self) -> Membership:
        raise TypeError("a fault of the program")


def faulty(cluster: Cluster, offer: Offer, describe: Describe) -> Group:
    """A group with a fault that a restart repeats."""
    return _Faulty(Table(1), "a", offer)
