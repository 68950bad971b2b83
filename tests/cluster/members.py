"""Members of a cluster and its rendezvous in processes of their own, which tests kill and stop."""

import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mlxhog.arena.child import Child
from mlxhog.cluster.group import GroupState, MemberMachine, Membership
from mlxhog.cluster.rendezvous import parse_address
from tests.threads import LIMIT_S

SILENT_S = 60.0  # a member is alive, however long its process waits for a core
DEAD_S = 10.0  # where a round must not wait long for one that was killed
IDENTITY = dict(
    version="1", layout="l", tokenizer="t", data="d", batch_size=4, base="b", seed=0,
    round_every=10.0, outer_lr=0.7, outer_momentum=0.9, round_dtype="float32", system="Linux",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """A member after a round."""

    membership: Membership
    commits: bool
    has_loaded: bool
    state: GroupState


class Lighthouse(Child):
    """A rendezvous; it has its address."""

    def __init__(self, address="127.0.0.1:0", token="", silent_s=SILENT_S):
        super().__init__()
        self.address = self.call(LIMIT_S, _lead, address, token, silent_s)


class Member(Child):
    """A machine with four parameters; each round moves them by the mean of the members' values."""

    def __init__(self, address, name, value=1.0, **options):
        """Wait until the others know it."""
        super().__init__()
        try:
            self.call(LIMIT_S, _meet, address, name, value, options)
        except Exception:
            self.close()
            raise

    def begin_round(self):
        self.start(_play)

    def answer(self):
        return self.await_result(LIMIT_S)

    def round(self):
        self.begin_round()
        return self.answer()


def together(members):
    """A round of all members; their answers."""
    for one in members:
        one.begin_round()
    return [one.answer() for one in members]


@contextmanager
def cluster(*values, silent_s=SILENT_S, **options):
    """Run a rendezvous and a member for each value; nothing of them is left afterwards."""
    with Lighthouse(silent_s=silent_s) as light, ExitStack() as stack:
        members = []
        for n, value in enumerate(values):
            one = Member(light.address, f"m{n}", value, **options)
            members.append(stack.enter_context(one))
        yield light.address, members


def _lead(lane, address, token, silent_s):
    from mlxhog.cluster import torchft_group

    torchft_group.JOIN_S, torchft_group.HEARTBEAT_TIMEOUT_S = LIMIT_S, silent_s
    lane.store["rendezvous"] = rendezvous = torchft_group.Rendezvous(parse_address(address), token)
    return str(rendezvous.address)


def _meet(lane, address, name, value, options):
    from mlxhog.cluster import torchft_group

    how = {"round": 0, "params": 0.0, "identity": IDENTITY, "timeout_s": 60.0, **options}
    if how.pop("loses_transfers", False):
        torchft_group._Transport.recv_checkpoint = _lose
    if how.pop("is_stranger", False):
        torchft_group.check_token = lambda *_: None
    theta, identity = np.full(4, how.pop("params"), np.float32), how.pop("identity")
    store = lane.store
    store.update(own=GroupState(how["round"], 0, theta, np.zeros(4, np.float32)), value=value)

    def describe():
        return MemberMachine(
            zlib.crc32(name.encode()), name, store["own"].round, store["own"].round
        )

    store["group"] = group = torchft_group.TorchftGroup(
        parse_address(address), describe, lambda: store["own"], own="127.0.0.1", **how
    )
    store["check"] = partial(group.check, identity)


def _play(lane):
    group, own = lane.store["group"], lane.store["own"]
    lane.keep("checked", lane.store["check"])
    membership, loaded = group.join(), group.state()
    own = loaded or own
    buffer = np.full(5, lane.store["value"], np.float32)
    commits = group.average(buffer, 1)
    if commits and own.params[0] < 0:  # the test's sign of other outer parameters
        commits = False
        own = replace(own, round=0 if membership.rank else own.round, params=-own.params)
        group.be_at(own.round)
    if commits:
        own = replace(own, round=own.round + 1, params=own.params + buffer[:-1])
    lane.store["own"] = own
    return Answer(membership, commits, loaded is not None, own)


def _lose(*_, **more):
    raise OSError("the connection was lost")
