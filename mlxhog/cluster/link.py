"""The link: the one process of a machine that meets the other machines, and what watches it.

It is crash-only. After any error it ends; the supervisor starts a new one, no sooner than a round
later, which begins from the arena (`anchor.py`). Workers never wait for it and never touch the
network; but training begins when the first link has claimed data, or has failed. It adds nothing to
the parameters while a checkpoint is taken (`pause`), and after training only in the last round,
which the supervisor asks for when the workers rest.

A machine that does not fit the cluster (`Identity.check`), or lacks torchft, is refused before its
first round; that ends the run. Later errors are reported once, and the machine trains on alone.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

from mlxhog.arena import Arena, ArenaHandle
from mlxhog.arena.blocks import Blocks
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.marks import Marks
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.arena.worker_pool import WorkerProcess, last_lines
from mlxhog.arena.workers import STILL, Phase, State
from mlxhog.cluster.anchor import Anchor
from mlxhog.cluster.claims import Claims
from mlxhog.cluster.group import ClusterError, Describe, Group, Machine, Membership, Offer
from mlxhog.cluster.identity import Identity
from mlxhog.cluster.lighthouse import check_torchft, parse_address, token_of_member
from mlxhog.cluster.order import Order
from mlxhog.cluster.round import Outcome, play
from mlxhog.config.cluster import Cluster
from mlxhog.errors import ConfigError, EnvironmentLacks, MlxhogError
from mlxhog.files.quantities import format_duration
from mlxhog.machine.processes import FAULTS, end_by
from mlxhog.report.machines import Roster

NAP_S = 0.01
ROUNDS = "rounds.jsonl"
"""Beside the log: a line for each round that this machine committed, with its own tokens in it, all
tokens of the cluster, and the digest of theta_s after it."""
LEAST_SLOW_S = 1.0  # a shorter round or step is never reported as slow
START_S = 120.0  # the import of torch gives no sign of life
REFILL_S = 0.2  # between two claims of data
CALLS = 4  # of a group in a round; each has a limit
ENDS = (Command.REST, Command.EVALUATE, Command.SAMPLE, Command.EXIT)
REFUSALS = {2: ConfigError, 3: EnvironmentLacks}
OpenGroup = Callable[[Cluster, Offer, Describe], Group]


def open_torchft(cluster: Cluster, offer: Offer, describe: Describe) -> Group:
    """Open the group of the network; it imports torch, so only the link does."""
    engine = importlib.import_module("mlxhog.cluster.torchft_group")
    group: Group = engine.TorchftGroup(
        parse_address(cluster.address),
        describe,
        offer,
        round=offer().round,
        token=token_of_member(cluster.token or ""),
        own=cluster.own_address or "",
        dtype=cluster.round_dtype,
        quorum=cluster.quorum,
        timeout_s=cluster.limit_s,
    )
    return group


def machine_id(run_id: str) -> int:
    """The id of this machine in its cluster; another run of it has another one."""
    names = f"{platform.node()}/{uuid.getnode()}/{run_id}".encode()
    return int.from_bytes(hashlib.blake2b(names, digest_size=8).digest()) >> 1 or 1


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
    ledger = Ledger(arena)
    table = Blocks(arena, ledger)
    table.raise_cursor(own.number("cursor"))
    id = machine_id(arena.run_id)

    def describe() -> Machine:
        tokens = own.number("committed_before") + own.number("committed")
        name = job.cluster.machine or platform.node()
        return Machine(id, name, tokens, own.number("rounds"))

    group = job.open_group(job.cluster, lambda: replace(own.state(), cursor=table.cursor), describe)
    group.check(job.identity)
    # A link continues the counts of the last one of this call; a resumed run has its own.
    order = Order(arena, ledger, Claims(group.counters, f"{id}/{own.number('call')}"))
    roster, seen = Roster(arena), list[Membership]()

    def show(member: Membership, outcome: Outcome | None = None) -> None:
        seen[:] = [member]
        now = replace(describe(), id=member.id)
        roster.write(
            [asdict(now if one.id == member.id else one) for one in member.machines],
            () if outcome is Outcome.ALONE else member.ids,
            member.id,
            {**member.notes, **slowness(own, outcome, job.cluster.round_every)},
        )

    refills = _Refills(order)
    own.store("ready", 1)
    entry.state = State.RUNNING
    next_ns = monotonic_ns()
    while (command := Command(counters.load("command"))) != Command.EXIT:
        entry.beat()
        if not own.number("last") and (command in ENDS or monotonic_ns() < next_ns):
            time.sleep(NAP_S)
            continue
        refills.check()
        before = own.number("committed")
        outcome = play(own, group, job.cluster, show)
        show(seen[0], outcome)
        if outcome is Outcome.COMMITTED:
            _record(job.log.with_name(ROUNDS), own, own.number("committed") - before)
        table.raise_cursor(own.number("cursor"))
        # All members have left `join` together, so their next rounds begin together.
        next_ns = own.number("joined_ns") + int(job.cluster.round_every * 1e9)
        if not own.fresh(own.trained()):
            own.store("last", 0)
    refills.end()
    group.leave()
    entry.state = State.FINISHED


def slowness(own: Anchor, outcome: Outcome | None, round_every: float) -> dict[str, str]:
    """Why this machine is too slow for its rounds, by subject."""
    if outcome is not Outcome.COMMITTED:
        return {}
    limit_s = max(round_every, LEAST_SLOW_S)
    took_s = (monotonic_ns() - own.number("joined_ns")) / 1e9
    if took_s > limit_s:
        return {
            "slow": f"a round took {format_duration(took_s)}, longer than the "
            f"{format_duration(round_every)} between rounds: this machine or a link is too slow "
            "for them; raise --round-every on all machines, or take --round-dtype bfloat16"
        }
    steps_s = [
        (one.read_ns + one.compute_ns + one.apply_ns) / one.steps / 1e9
        for one in own.arena.workers
        if one.steps
    ]
    if steps_s and min(steps_s) > limit_s:
        return {
            "slow steps": f"a step of this machine takes {format_duration(min(steps_s))}, longer "
            f"than the {format_duration(round_every)} between rounds, so most rounds have nothing "
            "of it; raise --round-every on all machines, or lower --batch-size"
        }
    return {}


def _record(path: Path, own: Anchor, tokens: int) -> None:
    """Add a committed round to the file of rounds; a full disk costs its line only."""
    state = own.state()
    record = {
        "round": state.round - 1,
        "members": own.number("members"),
        "rank": own.number("rank"),
        "tokens": tokens,
        "cluster_tokens": state.tokens,
        "theta_s": state.digest.hex(),
    }
    with suppress(OSError), path.open("a") as stream:
        stream.write(json.dumps(record) + "\n")


def _await_workers(arena: Arena, job: LinkJob) -> None:
    """Wait until no worker is inside a step, seen twice with no step in between.

    Raises:
        ClusterError: that takes longer than a join may.
    """
    others = [one for one in arena.workers if one.slot != job.slot]
    until_ns = monotonic_ns() + int(job.cluster.limit_s * 1e9)
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
                f"cluster: workers took more than {job.cluster.limit_s:g} s to stop for a round; "
                "set cluster_timeout_s higher, or leave stop_workers out"
            )
        arena.workers.entry(job.slot).beat()
        time.sleep(NAP_S)


class _Refills(threading.Thread):
    """Claims data ahead of the workers, however long a round takes."""

    def __init__(self, order: Order) -> None:
        """Claim the first data, then more in another thread."""
        super().__init__(name="refills", daemon=True)
        self._order, self._over = order, threading.Event()
        self._error: Exception | None = None
        order.refill()
        self.start()

    def run(self) -> None:
        try:
            while not self._over.wait(REFILL_S):
                self._order.refill()
        except Exception as error:  # a round that has begun still ends
            self._error = error

    def check(self) -> None:
        """Raise the error that ended the thread, if there was one."""
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Report the last counts and end the thread."""
        self._over.set()
        self.join()
        self.check()
        self._order.report()


# -- the supervisor's side -----------------------------------------------------------------------


class Link:
    """The link of an arena, as its supervisor sees it; used by one thread of one process."""

    def __init__(self, arena: Arena, job: LinkJob) -> None:
        """Start none yet.

        Args:
            arena: created by this process, with the segments of `anchor.py`.
            job: without slot and handle.
        """
        self.arena, self._job, self._roster = arena, job, Roster(arena)
        self.slot: int | None = None
        self.messages: list[str] = []
        self._process: WorkerProcess | None = None
        self._started_ns = 0
        self._told = dict[str, str]()
        self._faulty = False
        self._rounds = 0
        self._watched = WatchedTime()
        self._beat_ns, self._beat_seen_s = 0, 0.0

    def start(self, slot: int) -> None:
        """Make theta_s the parameters, and start the first link in a free worker slot.

        Raises:
            ConfigError: the address has no machine.
            EnvironmentLacks: torchft is not installed.

        Concurrency: no worker may move yet.
        """
        if self._job.open_group is open_torchft:
            check_torchft()
            parse_address(self._job.cluster.address)
        Anchor(self.arena).begin()
        self.slot = slot
        self._spawn()

    def _spawn(self) -> None:
        assert self.slot is not None
        self._started_ns = monotonic_ns()
        job = replace(self._job, slot=self.slot, handle=self.arena.handle())
        self._process = WorkerProcess(
            main, (job,), name="mlxhog-link", threads=1, arena=self.arena, slots=(self.slot,)
        )

    @property
    def pid(self) -> int | None:
        """Id of its process; None while there is none."""
        return None if self._process is None else self._process.pid

    def poll(self) -> None:
        """Replace a dead link when a round has passed since its start; report changes.

        Raises:
            ConfigError, EnvironmentLacks: the first link was refused; the message is its own.
        """
        if self.slot is None or self._faulty:
            return
        rounds = Anchor(self.arena).number("rounds")
        if self._is_alone and rounds > self._rounds:
            self._is_alone = False
            members = Anchor(self.arena).number("members")
            self.messages.append(f"the link is back, in a round of {members} machines")
        self._rounds = rounds
        notes = self._roster.notes()
        self.messages += [text for subject, text in notes.items() if subject not in self._told]
        self._told = notes
        self._kill_stale()
        if self._process is not None and not self._process.is_alive():
            self._reap()
        elapsed_s = (monotonic_ns() - self._started_ns) / 1e9
        is_due = elapsed_s > self._job.cluster.round_every
        is_over = self.arena.counters.load("command") in ENDS
        if self._process is None and is_due and not is_over and not self._faulty:
            self._spawn()

    def _kill_stale(self) -> None:
        """Kill a link without a sign of life for longer than its calls may take."""
        if self._process is None or self.slot is None:
            return
        entry, now_s = self.arena.workers.entry(self.slot), self._watched.look()
        if entry.heartbeat_ns != self._beat_ns:
            self._beat_ns, self._beat_seen_s = entry.heartbeat_ns, now_s
        limit_s = CALLS * self._job.cluster.limit_s
        if entry.state == State.STARTING:
            limit_s = max(limit_s, START_S)
        if now_s - self._beat_seen_s > limit_s:
            self._beat_seen_s = now_s
            self._process.kill()

    def _reap(self) -> None:
        assert self._process is not None
        assert self.slot is not None
        state = self.arena.workers.entry(self.slot).state
        death = self._process.reap()
        self._process = None
        Marks(self.arena, self.slot).settle()
        self.arena.counters.store("round_pause", 0)
        if state == State.FINISHED:
            return
        line = self._last_line()
        if death.code in REFUSALS and not Anchor(self.arena).number("joined_ns"):
            raise REFUSALS[death.code](line.removeprefix("error: "))
        self._faulty = death.is_fault
        if self._faulty:
            self.messages.append(
                f"the link met an error that a restart cannot cure ({line}), so this machine "
                f"trains alone; see {self._job.log}, and please report it"
            )
        elif not self._is_alone:
            self.messages.append(
                f"the link ended ({death}; {line}); this machine trains alone until another one "
                "reaches the cluster"
            )
        self._is_alone = True

    def _last_line(self) -> str:
        log = self._job.log
        with log.open("rb") if log.exists() else BytesIO() as output:
            return last_lines(output)[-1]

    def still(self) -> bool:
        """Whether it changes no parameter while `pause` is set, or training is over."""
        if self._process is None or self.slot is None:
            return True
        return self.arena.workers.entry(self.slot).phase != Phase.APPLY

    @property
    def is_ready(self) -> bool:
        """Whether workers may start: there is data of the cluster, or the first link has failed."""
        return self._is_alone or self._faulty or bool(Anchor(self.arena).number("ready"))

    def ask_for_last_round(self) -> None:
        """Let the link send what is trained, now that workers rest."""
        Anchor(self.arena).store("last", 1)

    @property
    def has_sent_all(self) -> bool:
        """Whether no token waits for a round, or there is no link that could send it."""
        return self._process is None or not Anchor(self.arena).number("last")

    @property
    def is_in_doubt(self) -> bool:
        """Whether other machines may have committed what the link does not know of yet."""
        return self._process is not None and Anchor(self.arena).has_sent()

    def end_rounds(self) -> None:
        """Kill a link that has not sent all yet, so that a checkpoint knows what it has sent."""
        if not self.has_sent_all:
            self.stop(0.0)

    def stop(self, timeout_s: float) -> None:
        """Let it leave the cluster, after the command to exit; kill it if that takes long."""
        if self._process is not None and self.slot is not None:
            self._process.reap(timeout_s)
            self._process = None
            Marks(self.arena, self.slot).settle()
            self.arena.workers.release(self.slot)
            self.slot = None

    def report(self) -> dict[str, object]:
        """The machine's part in the cluster, see `Anchor.report`."""
        return {"alone": self._is_alone, **Anchor(self.arena).report()}

    @property
    def _is_alone(self) -> bool:
        """Whether no link reaches the cluster, as last reported."""
        return self._roster.is_alone

    @_is_alone.setter
    def _is_alone(self, value: bool) -> None:
        self._roster.is_alone = value
