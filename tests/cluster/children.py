"""Groups that the links of these tests open in their own process."""

from dataclasses import replace

from mlxhog.cluster.group import ClusterError
from mlxhog.errors import ConfigError
from tests.cluster.in_process import InProcess, Table


def alone(cluster, offer, describe):
    """A cluster of one machine."""
    return InProcess(Table(1), "a", offer)


class _Growing(InProcess):
    joins = 0

    def join(self):
        self.joins += 1
        member = super().join()
        return member if self.joins < 3 else replace(member, ids=(*member.ids, 1))

    def average(self, buffer, exact):
        commits = super().average(buffer, exact)
        buffer[-2 * self.members :] /= self.members  # tokens; the second machine has none
        return commits

    @property
    def members(self):
        return 1 if self.joins < 3 else 2


def growing(cluster, offer, describe):
    """A cluster of one machine, and of two from its third join on."""
    return _Growing(Table(1), "a", offer)


class _Refusing(InProcess):
    def check(self, identity):
        raise ConfigError("cluster: the token is wrong; take that of the line that start printed")


def refusing(cluster, offer, describe):
    """A cluster that this machine does not fit."""
    return _Refusing(Table(1), "a", offer)


class _OutOfReach(InProcess):
    def join(self):
        raise ClusterError("cluster: no lighthouse answers")


def out_of_reach(cluster, offer, describe):
    """A cluster whose lighthouse does not answer."""
    return _OutOfReach(Table(1), "a", offer)


class _Faulty(InProcess):
    def join(self):
        raise TypeError("a fault of the program")


def faulty(cluster, offer, describe):
    """A group with a fault that a restart repeats."""
    return _Faulty(Table(1), "a", offer)
