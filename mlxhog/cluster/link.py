"""The link: the one process of a machine that meets the other machines, and what watches it.

It is crash-only. After any error it ends; the supervisor starts a new one, no sooner than a round
later, which begins from the arena (`anchor.py`). Workers never wait for it and never touch the
network. It waits for them in two cases only: while a checkpoint is taken (`pause`), and when
training is over, it adds nothing to the parameters.

A machine that does not fit the cluster (`Identity.check`), or lacks torchft, is refused when its
first link joins; that ends the run. Later errors are reported once, and training goes on alone.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

from mlxhog.arena import Arena, ArenaHandle
from mlxhog.arena.control import Command
from mlxhog.arena.marks import Marks
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.worker_pool import WorkerProcess, last_lines
from mlxhog.arena.workers import Phase, State
from mlxhog.cluster.anchor import Anchor
from mlxhog.cluster.group import Describe, Group, Machine, Membership, Offer
from mlxhog.cluster.identity import Identity
from mlxhog.cluster.lighthouse import check_torchft, parse_address, token_of_member
from mlxhog.cluster.round import Outcome, play
from mlxhog.config.cluster import Cluster
from mlxhog.errors import ConfigError, EnvironmentLacks, MlxhogError
from mlxhog.files.quantities import format_duration
from mlxhog.machine.processes import FAULTS, end_by
from mlxhog.report.machines import Roster

NAP_S = 0.01
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
        round_every=cluster.round_every,
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
            if not counters.load("pause") and command not in ENDS:
                break
            if command == Command.EXIT:
                os._exit(0)
            entry.beat(Phase.IDLE)
            time.sleep(NAP_S)
        yield
        entry.beat(Phase.IDLE)

    own = Anchor(arena, job.slot, writing)

    def describe() -> Machine:
        name = job.cluster.machine or platform.node()
        return Machine(
            machine_id(arena.run_id), name, own.number("committed"), own.number("rounds")
        )

    group = job.open_group(job.cluster, own.state, describe)
    roster = Roster(arena)
    seen = list[Membership]()

    def show(member: Membership, outcome: Outcome) -> None:
        now = replace(describe(), id=member.id)
        roster.write(
            [asdict(now if one.id == member.id else one) for one in member.machines],
            () if outcome is Outcome.ALONE else member.ids,
            member.id,
            {**member.notes, **_slowness(own, outcome, job.cluster.round_every)},
        )

    next_ns = monotonic_ns()
    while (command := Command(counters.load("command"))) != Command.EXIT:
        entry.beat()
        if command in ENDS or monotonic_ns() < next_ns:
            time.sleep(NAP_S)
            continue
        seen.clear()
        outcome = play(own, group, job.identity, job.cluster, show=seen.append)
        show(seen[0], outcome)
        # All members have left `join` together, so their next rounds begin together.
        next_ns = own.number("joined_ns") + int(job.cluster.round_every * 1e9)
        entry.state = State.RUNNING
    group.leave()
    entry.state = State.FINISHED


def _slowness(own: Anchor, outcome: Outcome, round_every: float) -> dict[str, str]:
    """Why this machine is too slow for its rounds, if it is."""
    took_s = (monotonic_ns() - own.number("joined_ns")) / 1e9
    every = format_duration(round_every)
    if took_s > round_every:
        return {
            "slow": f"a round took {format_duration(took_s)} on the wire, longer than the "
            f"{every} between rounds; raise --round-every on all machines, or take "
            "--round-dtype bfloat16"
        }
    if outcome is Outcome.COMMITTED and own.number("rounds") > 1 and not own.number("last"):
        return {
            "idle": f"no step of this machine ended within the {every} of a round, so the round "
            "has nothing of it; raise --round-every on all machines, or lower --batch-size"
        }
    return {}


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
        if self._process is not None and not self._process.is_alive():
            self._reap()
        elapsed_s = (monotonic_ns() - self._started_ns) / 1e9
        if self._process is None and not self._faulty and elapsed_s > self._job.cluster.round_every:
            self._spawn()

    def _reap(self) -> None:
        assert self._process is not None
        assert self.slot is not None
        state = self.arena.workers.entry(self.slot).state
        death = self._process.reap()
        self._process = None
        Marks(self.arena, self.slot).settle()
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
