"""Members of a cluster and its lighthouse in processes of their own, which tests kill and stop."""

import zlib
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np

from mlxhog.cluster.group import Machine, Membership, State
from mlxhog.cluster.lighthouse import parse_address
from tests import another_process
from tests.forked import CONTEXT

ANSWER_S = 60.0  # for a process that hangs; none should come near it
IDENTITY = dict(
    version="1", layout="l", tokenizer="t", data="d", batch_size=4, seed=0, round_every=10.0,
    outer_lr=0.7, outer_momentum=0.9, round_dtype="float32", system="Linux",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """A member after a round."""

    membership: Membership
    commits: bool
    has_loaded: bool
    state: State


class Running(another_process.Running):
    """A process of a test that answers over a pipe; an error is an answer, too."""

    def __init__(self, function, *arguments):
        self._pipe, its = CONTEXT.Pipe()
        super().__init__(_answering, function, its, *arguments)
        its.close()

    def __enter__(self):
        """Wait until the others know it."""
        self.address = self.answer()
        return self

    def __exit__(self, *_):
        self.kill()

    def begin_round(self):
        self._pipe.send(None)

    def round(self):
        self.begin_round()
        return self.answer()

    def answer(self):
        assert self._pipe.poll(ANSWER_S), "no answer"
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def has_answered(self):
        return self._pipe.poll()

    def kill(self):
        super().kill()
        self.wait(ANSWER_S)


def member(address, name, value=1.0, **options):
    """A machine with four parameters; each round moves them by the mean of the members' values."""
    return Running(_member, address, name, value, options)


def lighthouse(address="127.0.0.1:0", token=""):
    """A lighthouse; it has its address."""
    return Running(_lighthouse, address, token)


def together(members):
    """A round of all members; their answers."""
    for one in members:
        one.begin_round()
    return [one.answer() for one in members]


@contextmanager
def cluster(*values, **options):
    """Run a lighthouse and a member for each value; nothing of them is left afterwards."""
    with lighthouse() as light, ExitStack() as stack:
        members = [member(light.address, f"m{n}", one, **options) for n, one in enumerate(values)]
        yield light.address, [stack.enter_context(one) for one in members]


def _answering(function, pipe, *arguments):
    try:
        with suppress(EOFError):
            function(pipe, *arguments)
    except Exception as error:
        pipe.send(error)


def _lighthouse(pipe, address, token):
    from mlxhog.cluster import torchft_group

    torchft_group.JOIN_S, torchft_group.SILENT_S = 5.0, 0.5
    authority = torchft_group.Authority(parse_address(address), token)
    pipe.send(str(authority.address))
    pipe.recv()  # until the test ends


def _member(pipe, address, name, value, options):
    from mlxhog.cluster import torchft_group

    how = {"round": 0, "anchor": 0.0, "identity": IDENTITY, "timeout_s": 20.0, **options}
    if how.pop("loses_transfers", False):
        torchft_group._Transport.recv_checkpoint = _lose
    if how.pop("is_stranger", False):
        torchft_group.check_token = lambda *_: None
    theta, identity = np.full(4, how.pop("anchor"), np.float32), how.pop("identity")
    own = State(how["round"], 0, theta, np.zeros(4, np.float32))

    def describe():
        return Machine(zlib.crc32(name.encode()), name, tokens=own.round, rounds=own.round)

    group = torchft_group.TorchftGroup(
        parse_address(address), describe, lambda: own, own="127.0.0.1", **how
    )
    pipe.send(address)
    pipe.recv()
    group.check(identity)
    while True:
        membership, loaded = group.join(), group.state()
        own = loaded or own
        buffer = np.full(5, value, np.float32)
        commits = group.average(buffer, 1)
        if commits and own.anchor[0] < 0:  # the test's sign of another theta_s
            commits = False
            own = replace(own, round=0 if membership.rank else own.round, anchor=-own.anchor)
            group.be_at(own.round)
        if commits:
            own = replace(own, round=own.round + 1, anchor=own.anchor + buffer[:-1])
        pipe.send(Answer(membership, commits, loaded is not None, own))
        pipe.recv()


def _lose(*_, **more):
    raise OSError("the connection was lost")
