"""Members of a cluster and its lighthouse in processes of their own, which tests kill and stop."""

from __future__ import annotations

import zlib
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np

from mlxhog.cluster.group import Machine, Membership, State
from mlxhog.cluster.lighthouse import Lighthouse, parse_address
from tests import another_process
from tests.forked import CONTEXT

ANSWER_S = 60.0  # for a process that hangs; none should come near it
QUICK = Lighthouse(heartbeat=0.5, join_timeout=5.0)
IDENTITY = dict(
    version="1", layout="l", tokenizer="t", data="d", batch_size=4, seed=0, round_every=10.0,
    outer_lr=0.7, outer_momentum=0.9, round_dtype="float32", system="Linux",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """A member after a call."""

    membership: Membership
    commits: bool | None
    has_loaded: bool
    state: State


class Running(another_process.Running):
    """A process of a test that answers over a pipe."""

    def __init__(self, function, *arguments):
        self._pipe, its = CONTEXT.Pipe()
        super().__init__(function, its, *arguments)
        its.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def call(self, *words):
        self.send(*words)
        return self.answer()

    def send(self, *words):
        self._pipe.send(words)

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


class Member(Running):
    """A machine with four parameters; each round moves them by the mean of the members' ones."""

    def __init__(self, address, name, value=1.0, **options):
        super().__init__(_member, address, name, value, options)

    def __enter__(self):
        assert self.answer() is None  # the lighthouse knows it
        return self


def together(members, *words):
    """Give all members a command, then wait for all answers."""
    for member in members:
        member.send(*words)
    return [member.answer() for member in members]


@contextmanager
def cluster(*values, **options):
    """Run a lighthouse and a member for each value; nothing of them is left afterwards."""
    with lighthouse() as (_, address):
        members = [Member(address, f"m{n}", value, **options) for n, value in enumerate(values)]
        with ExitStack() as stack:
            yield address, [stack.enter_context(member) for member in members]


@contextmanager
def lighthouse(address="127.0.0.1:0", token="", options=QUICK):
    """Run a lighthouse; return its address, too."""
    with Running(_lighthouse, address, token, options) as running:
        yield running, running.answer()


def _lighthouse(pipe, address, token, options):
    from mlxhog.cluster.torchft_group import Authority

    authority = Authority(parse_address(address), token, options)
    pipe.send(str(authority.address))
    with suppress(EOFError):
        pipe.recv()  # until the test ends


def _member(pipe, address, name, value, options):
    try:
        with suppress(EOFError):
            _calls(pipe, address, name, value, **options)
    except Exception as error:
        pipe.send(error)


def _calls(
    pipe,
    address,
    name,
    value,
    *,
    round=0,
    anchor=0.0,
    identity=IDENTITY,
    timeout_s=20.0,
    loses_transfers=False,
    is_stranger=False,
    **options,
):
    from mlxhog.cluster import torchft_group
    from mlxhog.cluster.torchft_group import TorchftGroup

    if loses_transfers:
        torchft_group._Transport.recv_checkpoint = _lose
    if is_stranger:
        torchft_group.check_token = lambda *_: None
    theta, zeros = np.full(4, anchor, np.float32), np.zeros(4, np.float32)
    own = State(round=round, tokens=0, anchor=theta, velocity=zeros)

    def describe():
        return Machine(zlib.crc32(name.encode()), name, tokens=own.round, rounds=own.round)

    group = TorchftGroup(
        parse_address(address), describe, lambda: own, round=round, timeout_s=timeout_s,
        own="127.0.0.1", **options,
    )  # fmt: skip
    pipe.send(None)
    membership, has_loaded, has_checked = Membership(0, 0, ()), False, False
    while True:
        (word,) = pipe.recv()
        commits = None
        if word == "leave":
            group.leave()
            pipe.send(None)
            return
        if word in ("join", "round"):
            if not has_checked:
                group.check(identity)
                has_checked = True
            membership = group.join()
            loaded = group.state()
            own, has_loaded = loaded or own, loaded is not None
        if word in ("average", "round"):
            buffer = np.full(5, value, np.float32)
            commits = group.average(buffer, 1)
            if commits and own.anchor[0] < 0:  # the test's sign of another theta_s
                commits = False
                own = replace(own, round=0 if membership.rank else own.round, anchor=-own.anchor)
                group.be_at(own.round)
            if commits:
                own = replace(own, round=own.round + 1, anchor=own.anchor + buffer[:-1])
        pipe.send(Answer(membership, commits, has_loaded, own))


def _lose(*_, **more):
    raise OSError("the connection was lost")
