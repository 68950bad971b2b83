"""One round between machines: token-weighted outer gradients, then an outer optimizer step.

With theta_m the parameters of machine m, t_m its tokens since its last committed round, and the
outer parameters theta and velocity v, which are equal on all machines (`outer_state.py`),

    D = sum over m of t_m (theta - theta_m) / sum over m of t_m
    theta, v <- outer step along D (`nesterov`)
    theta_m <- theta_m + (theta - theta_m as it was read)

so what workers add during the round stays in theta_m, and goes into the next one. The group
averages one flat buffer:

    [ t_m (theta - theta_m), 16-bit digits of the digest of theta, t_m in two parts for each m ]

where a machine leaves the parts of the others at 0. The mean of the digest's digits equals a
machine's own digits only if all machines have the same theta. With `bfloat16` the group rounds the
outer gradients.

Source: Douillard et al. 2023, DiLoCo, arXiv:2311.08105; weights by tokens: Decoupled DiLoCo,
arXiv:2604.21428.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from mlxhog.arena.process import monotonic_ns
from mlxhog.cluster.group import (
    MAX_TOKENS_PER_S,
    ClusterError,
    Float32,
    GroupState,
    Membership,
    root_mean_square,
)
from mlxhog.cluster.outer_state import OuterState
from mlxhog.config.config import TrainConfig
from mlxhog.strategies.averaging import nesterov

if TYPE_CHECKING:
    from mlxhog.cluster.torchft_group import TorchftGroup

_PART = 1 << 12  # a machine's tokens in two parts, which float32 has exactly
_DIGITS = 4  # of 16 bits each, of the digest
_MAX_TIMES = 1000  # most tokens of a machine in a round, as a multiple of another one's


class Outcome(Enum):
    """How a round ended on this machine."""

    COMMITTED = "committed"
    REFUSED = "refused"  # no member has the mean: one was lost, or had other outer parameters
    EARLY = "early"  # no other member, and a round without others is not due


def run_round(
    own: OuterState,
    group: TorchftGroup,
    cluster: TrainConfig,
    show: Callable[[Membership], object] = lambda member: None,
    *,
    is_due: bool = True,
) -> Outcome:
    """Take part in one round.

    Args:
        own: state of this machine; any error leaves it such that the next round can begin.
        group: of this machine.
        cluster: configuration of the run.
        show: called with the members after the join.
        is_due: whether a round takes place without others, too.

    Raises:
        ClusterError: members have older outer parameters, or parameters, a state or the mean are
            not finite or beyond the bounds of `group.py`; this machine keeps its own.
        Exception: any error of the group.
    """
    words, member = own.words, group.join()
    words["members"], words["rank"] = member.members, member.rank
    words["joined_ns"] = monotonic_ns()
    show(member)
    if (state := group.state()) is not None:
        state.check(own.state())
        if words["round"] <= state.round == member.round:
            own.merge(state)
            state = None
    if state is not None or member.round != words["round"]:
        raise ClusterError(
            f"cluster: the members begin round {member.round}, and this machine has "
            f"{words['round']} rounds and got {'no' if state is None else 'another'} state; it "
            "keeps its own for the next try. Give the token only to machines of this run"
        )
    if member.members == 1 and not is_due:
        return Outcome.EARLY
    words["sent"] = 0  # the members have not committed it; one that is away may have, until now
    words["sent_tokens"] = tokens = own.snapshot()
    fresh = own.uncommitted(tokens)
    buffer = _packed(own, member, fresh)
    digest = buffer[own.n : own.n + _DIGITS].copy()
    words["sent"] = 1
    if not group.average(buffer, len(buffer) - own.n):
        words.add("refused")  # another member may have committed it: the next join tells
        return Outcome.REFUSED
    words.add("bytes", buffer.nbytes // (1 + (cluster.round_dtype == "bfloat16")))
    total = _total(own, member, buffer, fresh, cluster)
    if (digest != buffer[own.n : own.n + _DIGITS]).any():
        words.add("unequal")
        words["sent"] = 0
        if member.rank:  # at its next join it loads the state of the first
            words["round"] = 0
        group.be_at(words["round"])
        return Outcome.REFUSED
    outer, velocity = own.of("params"), own.of("velocity")
    if total:
        rates = {"lr": cluster.cluster_outer_lr, "momentum": cluster.cluster_outer_momentum}
        gradient = buffer[: own.n] / np.float32(total / member.members)
        before = GroupState(member.round, 0, outer, velocity)
        if not (rms := root_mean_square(gradient)) <= (most := before.max_rms()):
            raise _dropped(
                f"the outer gradient of {member.others() or 'this machine'} has the root mean "
                f"square {rms:.3g}, expected up to {most:.3g}"
            )
        outer, velocity = nesterov(outer, velocity, gradient, **rates)
        if not (np.isfinite(outer).all() and np.isfinite(velocity).all()):
            raise _dropped("the outer step leads to values that are not finite")
    tokens = words["tokens"] + total
    own.commit(GroupState(member.round + 1, tokens, outer, velocity, own.seconds()))
    return Outcome.COMMITTED


def _packed(own: OuterState, member: Membership, fresh: int) -> Float32:
    weighted = np.float32(fresh) * (own.of("params") - own.of("read"))
    if not np.isfinite(weighted).all():
        raise ClusterError(
            "cluster: parameters of this machine are not finite, so the others do not get them; "
            "lower --lr or --clip"
        )
    parts = np.zeros((member.members, 2), np.float32)
    parts[member.rank] = divmod(fresh, _PART)
    digest = np.frombuffer(own.digest, "<u2", _DIGITS).astype(np.float32)
    return np.concatenate([weighted, digest, parts.ravel()])


def _total(
    own: OuterState, member: Membership, mean: Float32, fresh: int, cluster: TrainConfig
) -> int:
    """Return the tokens of all members in a mean; ClusterError if it cannot be theirs."""
    if not np.isfinite(mean).all():  # should a member commit it, the next join tells
        raise _dropped("the mean of the members has values that are not finite")
    parts = [round(float(part) * member.members) for part in mean[own.n + _DIGITS :]]
    most = max(round(MAX_TOKENS_PER_S * cluster.round_every), _MAX_TIMES * fresh)
    tokens = [high * _PART + low for high, low in zip(parts[::2], parts[1::2], strict=True)]
    for rank, count in enumerate(tokens):
        if not 0 <= count <= most:
            name = member.name(rank)
            raise _dropped(f"the machine {name} counts {count:,} tokens, expected 0 to {most:,}")
    if (received := tokens[member.rank]) != fresh:
        raise _dropped(f"{received:,} tokens of this machine arrived, which sent {fresh:,}")
    return sum(tokens)


def _dropped(problem: str) -> ClusterError:
    return ClusterError(
        f"cluster: {problem}; the round is dropped, and this machine keeps its own state. Give the "
        "token only to machines of this run"
    )
