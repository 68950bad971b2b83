"""The link: the one process of a machine that meets the other machines.

It is crash-only. After any error it ends; the supervisor (`watched_link.py`) starts a new one, no
sooner than a round later, which begins from the arena (`anchor.py`). Workers never wait for it and
never touch the network; but training begins when the first link has compared this machine with the
others, or has failed. It adds nothing to the parameters while a checkpoint is taken (`pause`), and
after training only in the last round, which the supervisor asks for when the workers rest. Then it
leaves: a member that is alive and joins no round would hold up the others.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlxhog.arena import Arena, ArenaHandle
from mlxhog.arena.control import Command
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import STILL, Phase, State
from mlxhog.base.processes import FAULTS, end_by
from mlxhog.base.quantities import format_duration
from mlxhog.cluster.anchor import Anchor
from mlxhog.cluster.group import ClusterError, Describe, Group, Machine, Membership, Offer
from mlxhog.cluster.identity import Identity
from mlxhog.cluster.lighthouse import own_ip, parse_address, token_of_member
from mlxhog.cluster.round import Outcome, play
from mlxhog.config.cluster import Cluster
from mlxhog.errors import MlxhogError
from mlxhog.report.machines import Roster

NAP_S = 0.01
ROUNDS = "rounds.jsonl"
"""Beside the log: a line for each round that this machine committed, with its own tokens in it, all
tokens of the cluster, and the digest of theta_s after it."""
LEAST_SLOW_S = 1.0  # a shorter round or step is never reported as slow
CONNECT_S = 10.0  # longest wait for the lighthouse's address to answer
LOOK_S = 1.0  # between two joins of a machine without others, so that a new one waits no longer
RETRY_S = 0.2  # before a last round that was not committed is tried again
ENDS = (Command.REST, Command.EVALUATE, Command.SAMPLE, Command.EXIT)
OpenGroup = Callable[[Cluster, Offer, Describe], Group]


def open_torchft(cluster: Cluster, offer: Offer, describe: Describe) -> Group:
    """Open the group of the network; it imports torch, so only the link does.

    Raises:
        ConfigError: an address has no machine, or the token is wrong.
        ClusterError: no cluster answers.
    """
    address = parse_address(cluster.cluster or "")
    own = own_ip(address, CONNECT_S)  # without a cluster it fails before torch's import of seconds
    if cluster.cluster_own_address is not None:
        own = parse_address(f"{cluster.cluster_own_address}:0").ip
    engine = importlib.import_module("mlxhog.cluster.torchft_group")
    group: Group = engine.TorchftGroup(
        address,
        describe,
        offer,
        round=offer().round,
        token=token_of_member(cluster.cluster_token or ""),
        own=own,
        dtype=cluster.round_dtype,
        timeout_s=cluster.cluster_limit_s,
    )
    return group


@dataclass(frozen=True, kw_only=True)
class LinkJob:
    """The start data of a link; picklable for `spawn`.

    Attributes:
        cluster: the choice of the run.
        identity: of the run.
        log: file for its output.
        open_group: opens its group.
        slot: its worker slot, for its locks.
        handle: of the arena.
    """

    cluster: Cluster
    identity: Identity
    log: Path
    open_group: OpenGroup = open_torchft
    slot: int = 0
    handle: ArenaHandle | None = None


# -- the process ---------------------------------------------------------------------------------


def main(job: LinkJob) -> None:
    """Entry point of the spawned process; ends it with the error's exit code."""
    with suppress(OSError), job.log.open("a", buffering=1) as stream:  # else output is dropped
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        _run(job)
    except FAULTS as fault:
        end_by(fault)
    except MlxhogError as error:
        with suppress(OSError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    except BaseException:  # of the network, mostly; threads of torchft must not keep the process
        with suppress(OSError):
            traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _run(job: LinkJob) -> None:
    assert job.handle is not None
    arena = Arena.from_handle(job.handle)
    entry, counters = arena.workers.entry(job.slot), arena.counters
    entry.beat(Phase.IDLE)

    @contextmanager
    def writing() -> Iterator[None]:
        """Wait until the parameters may change, and say so meanwhile."""
        while True:
            entry.beat(Phase.APPLY)
            command = Command(counters.load("command"))
            if not counters.load("pause") and (command not in ENDS or own.number("last")):
                break
            if command == Command.EXIT:
                os._exit(0)
            entry.beat(Phase.IDLE)
            time.sleep(NAP_S)
        yield
        entry.beat(Phase.IDLE)

    @contextmanager
    def stopped() -> Iterator[None]:
        """Stop the workers after their step, for the whole block."""
        if job.cluster.stop_workers:
            counters.store("round_pause", 1)
            _await_workers(arena, job)
        yield
        counters.store("round_pause", 0)

    own = Anchor(arena, job.slot, writing, stopped)
    own.settle()
    id = own.number("id")

    def describe() -> Machine:
        name = job.cluster.cluster_machine or platform.node()
        return Machine(id, name, own.committed(), own.number("rounds"))

    group = job.open_group(job.cluster, own.state, describe)
    group.check(job.identity)
    roster, seen = Roster(arena), list[Membership]()

    def show(member: Membership, outcome: Outcome | None = None) -> None:
        seen[:] = [member]
        now = replace(describe(), id=member.id)
        roster.write(
            [asdict(now if one.id == member.id else one) for one in member.machines],
            member.ids,
            member.id,
            slowness(own, outcome, job.cluster),
        )

    own.store("ready", 1)
    entry.state = State.RUNNING
    every_ns, look_ns = (int(seconds * 1e9) for seconds in (job.cluster.round_every, LOOK_S))
    next_ns = monotonic_ns()
    due_ns = next_ns + every_ns
    while (command := Command(counters.load("command"))) != Command.EXIT:
        entry.beat()
        if not own.number("last") and (command in ENDS or monotonic_ns() < next_ns):
            time.sleep(NAP_S)
            continue
        is_due = bool(own.number("last")) or monotonic_ns() >= due_ns
        outcome = play(own, group, job.cluster, show, is_due=is_due)
        show(seen[0], outcome)
        if outcome is Outcome.COMMITTED:
            _record(job.log.with_name(ROUNDS), own)
        else:
            time.sleep(RETRY_S)
        # All members have left `join` together, so their next rounds begin together.
        if outcome is not Outcome.EARLY:
            due_ns = own.number("joined_ns") + every_ns
        has_others = own.number("members") > 1
        next_ns = due_ns if has_others else min(due_ns, monotonic_ns() + look_ns)
        if own.number("last") and not own.fresh(own.trained()):
            own.store("last", 0)
            break
    group.leave()
    entry.state = State.FINISHED


def slowness(own: Anchor, outcome: Outcome | None, cluster: Cluster) -> dict[str, str]:
    """Why this machine may be too slow for its rounds, by subject."""
    every = format_duration(cluster.round_every)
    limit_s = max(cluster.round_every, LEAST_SLOW_S)
    took_s = (monotonic_ns() - own.number("joined_ns")) / 1e9
    if outcome is Outcome.REFUSED and took_s > cluster.cluster_limit_s:
        return {
            "given up": f"a round was given up after {format_duration(took_s)}: a machine was "
            "stopped or unplugged, or a link is too slow; if it comes again, raise "
            "--cluster-timeout-s and --round-every on all machines, or take --round-dtype bfloat16"
        }
    if outcome is not Outcome.COMMITTED:
        return {}
    if took_s > limit_s:
        return {
            "slow": f"a round took {format_duration(took_s)}, longer than the {every} between "
            "rounds: this machine or a link is too slow for them; raise --round-every on all "
            "machines, or take --round-dtype bfloat16"
        }
    steps_s = [
        (one.read_ns + one.compute_ns + one.apply_ns) / one.steps / 1e9
        for one in own.arena.workers
        if one.steps
    ]
    if steps_s and min(steps_s) > limit_s:
        return {
            "slow steps": f"a step of this machine takes {format_duration(min(steps_s))}, longer "
            f"than the {every} between rounds, so most rounds have nothing of it; raise "
            "--round-every or lower --batch-size, on all machines"
        }
    return {}


def _record(path: Path, own: Anchor) -> None:
    """Add a committed round to the file of rounds; a full disk costs its line only."""
    record = {
        "round": own.number("round") - 1,
        "members": own.number("members"),
        "rank": own.number("rank"),
        "tokens": own.round_tokens,
        "cluster_tokens": own.number("tokens"),
        "theta_s": own.digest.hex(),
    }
    with suppress(OSError), path.open("a") as stream:
        stream.write(json.dumps(record) + "\n")


def _await_workers(arena: Arena, job: LinkJob) -> None:
    """Wait until no worker is inside a step, seen twice with no step in between.

    Raises:
        ClusterError: that takes longer than a join may.
    """
    others = [one for one in arena.workers if one.slot != job.slot]
    until_ns = monotonic_ns() + int(job.cluster.cluster_limit_s * 1e9)
    before: list[int] | None = None
    while True:
        running = [one for one in others if one.state in (State.RUNNING, State.LEAVING)]
        steps = [one.steps for one in others]
        still = all(one.phase in STILL for one in running)
        if still and steps == before:
            return
        before = steps if still else None
        if monotonic_ns() > until_ns:
            raise ClusterError(
                f"cluster: workers took more than {job.cluster.cluster_limit_s:g} s to stop for a "
                "round; set cluster_timeout_s higher, or leave stop_workers out"
            )
        arena.workers.entry(job.slot).beat()
        time.sleep(NAP_S)
