"""The link: the one process of a machine that meets the other machines; and its supervisor's side.

It is crash-only. After any error it ends; the supervisor (`Sidecar`) starts a new one, no sooner
than a round later, which begins from the arena (`anchor.py`). By a pipe it tells the supervisor
whom it meets, and its last error. Workers never wait for it and never touch the network; but
training begins when the first link has compared this machine with the others, or has failed. It
adds nothing to the parameters while a checkpoint is taken (`pause`), and after training only in the
last round, which the supervisor asks for when the workers rest. Then it
leaves: a member that is alive and joins no round would hold up the others.

A machine that does not fit the cluster, or lacks torchft, is refused before it trains; that ends
the run. Later errors are reported once, and the machine trains on alone.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.arena import Arena, ArenaHandle
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.arena.published import SeqlockCounters
from mlxhog.arena.workers import WorkerPhase, WorkerState
from mlxhog.base.child_processes import WorkerProcess, last_lines
from mlxhog.base.inside import inside
from mlxhog.base.processes import FAULTS, end_by
from mlxhog.base.quantities import format_duration
from mlxhog.cluster.anchor import Anchor
from mlxhog.cluster.group import Describe, Identity, MemberMachine, Membership, Offer, Roster
from mlxhog.cluster.lighthouse import check_torchft, own_ip, parse_address, token_of
from mlxhog.cluster.round import Outcome, play
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError, EnvironmentLacks, MlxhogError

if TYPE_CHECKING:
    from mlxhog.cluster.torchft_group import TorchftGroup

NAP_S = 0.01
ROUNDS = "rounds.jsonl"
"""Beside the log: a line for each round that this machine committed, with its own tokens in it, all
tokens of the cluster, and the digest of theta_s after it."""
MIN_SLOW_S = 1.0  # a shorter round is never reported as slow
CONNECT_S = 10.0  # longest wait for the lighthouse's address to answer
LOOK_S = 1.0  # between two joins of a machine without others, so that a new one waits no longer
RETRY_S = 0.2  # before a last round that was not committed is tried again
START_S = 120.0  # the import of torch gives no sign of life
LAST_ROUND_S = 5.0  # limit of the last round, beyond the time until the others play one
CALLS = 4  # of a group in a round; each has a limit
ENDS = (ControlCommand.DRAIN, ControlCommand.EVALUATE, ControlCommand.SAMPLE, ControlCommand.EXIT)
OpenGroup = Callable[[TrainConfig, Offer, Describe], "TorchftGroup"]


def open_torchft(cluster: TrainConfig, offer: Offer, describe: Describe) -> TorchftGroup:
    """Open the group of the network; it imports torch, so only the link does."""
    check_torchft()
    address = parse_address(cluster.cluster or "")
    own = own_ip(address, CONNECT_S)  # without a cluster it fails before torch's import of seconds
    if cluster.cluster_own_address is not None:
        own = parse_address(f"{cluster.cluster_own_address}:0").ip
    engine = importlib.import_module("mlxhog.cluster.torchft_group")
    group: TorchftGroup = engine.TorchftGroup(
        address,
        describe,
        offer,
        round=offer().round,
        token=token_of(cluster.cluster_token or ""),
        own=own,
        dtype=cluster.round_dtype,
        timeout_s=cluster.cluster_limit_s,
    )
    return group


@dataclass(frozen=True, kw_only=True)
class LinkJob:
    """What every link of a run is started with."""

    cluster: TrainConfig  # the choice of the run
    identity: Identity  # of the run
    log: Path  # file for its output, in a folder of the run
    open_group: OpenGroup = open_torchft  # opens its group


# -- the process -----------------------------------------------------------------------------------


def main(pipe: Connection, job: LinkJob, handle: ArenaHandle, slot: int) -> None:
    """Entry point of the spawned process, which sends its error before it ends."""
    with suppress(OSError):  # else output is dropped
        with open(job.log, "w", buffering=1, opener=inside(job.log.parents[1])) as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
    code = 1
    try:
        _run(pipe, job, Arena.from_handle(handle), slot)
        code = 0
    except FAULTS as fault:
        end_by(fault)
    except MlxhogError as error:
        with suppress(OSError):
            pipe.send(error)
            print(f"error: {error}", file=sys.stderr, flush=True)
    except BaseException:  # of the network, mostly
        with suppress(OSError):
            traceback.print_exc()
    os._exit(code)  # threads of torchft must not keep the process


def _run(pipe: Connection, job: LinkJob, arena: Arena, slot: int) -> None:
    cluster, counters, entry = job.cluster, arena.counters, arena.workers.entry(slot)
    entry.beat(WorkerPhase.IDLE)

    @contextmanager
    def writing() -> Iterator[None]:
        """Wait until the parameters may change, and say so meanwhile."""
        while True:
            entry.beat(WorkerPhase.APPLY)
            command = ControlCommand(counters.load("command"))
            if not counters.load("pause") and (command not in ENDS or words["last"]):
                break
            if command == ControlCommand.EXIT:
                os._exit(0)
            entry.beat(WorkerPhase.IDLE)
            time.sleep(NAP_S)
        yield
        entry.beat(WorkerPhase.IDLE)

    own = Anchor(arena, slot, writing)
    own.settle()
    words = own.words

    def describe() -> MemberMachine:
        name = cluster.cluster_machine or platform.node()
        return MemberMachine(words["id"], name, own.committed(), words["rounds"])

    group = job.open_group(cluster, own.state, describe)
    group.check(job.identity)
    met = list[Membership]()

    def show(member: Membership, notes: Mapping[str, str] | None = None) -> None:
        met[:] = [member]
        pipe.send((member, replace(describe(), id=member.ids[member.rank]), notes or {}))

    words["ready"] = 1
    entry.state = WorkerState.RUNNING
    every_ns, look_ns = (int(seconds * 1e9) for seconds in (cluster.round_every, LOOK_S))
    next_ns = monotonic_ns()
    due_ns = next_ns + every_ns
    while (command := ControlCommand(counters.load("command"))) != ControlCommand.EXIT:
        entry.beat()
        if not words["last"] and (command in ENDS or monotonic_ns() < next_ns):
            time.sleep(NAP_S)
            continue
        is_due = bool(words["last"]) or monotonic_ns() >= due_ns
        outcome = play(own, group, cluster, show, is_due=is_due)
        show(met[0], slowness(own, outcome, cluster))
        if outcome is Outcome.COMMITTED:
            _record(job.log.with_name(ROUNDS), own)
        else:
            time.sleep(RETRY_S)
        # All members have left `join` together, so their next rounds begin together.
        if outcome is not Outcome.EARLY:
            due_ns = words["joined_ns"] + every_ns
        next_ns = due_ns if words["members"] > 1 else min(due_ns, monotonic_ns() + look_ns)
        if words["last"] and not own.fresh(own.trained()):
            words["last"] = 0
            break
    group.leave()
    entry.state = WorkerState.FINISHED


def slowness(own: Anchor, outcome: Outcome, cluster: TrainConfig) -> dict[str, str]:
    """Why this machine may be too slow for its rounds, by subject."""
    took_s = (monotonic_ns() - own.words["joined_ns"]) / 1e9
    took, every = format_duration(took_s), format_duration(cluster.round_every)
    if outcome is Outcome.REFUSED and took_s > cluster.cluster_limit_s:
        return {
            "given up": f"a round was given up after {took}: a machine was stopped or unplugged, "
            "or a link is too slow; if it comes again, raise --cluster-timeout and --round-every "
            "on all machines, or take --round-dtype bfloat16"
        }
    if outcome is Outcome.COMMITTED and took_s > max(cluster.round_every, MIN_SLOW_S):
        return {
            "slow": f"a round took {took}, longer than the {every} between rounds: this machine or "
            "a link is too slow for them; raise --round-every on all machines, or take "
            "--round-dtype bfloat16"
        }
    return {}


def _record(path: Path, own: Anchor) -> None:
    """Add a committed round to the file of rounds; a full disk costs its line only."""
    words = own.words
    record = {
        "round": words["round"] - 1,
        "members": words["members"],
        "rank": words["rank"],
        "tokens": own.round_tokens,
        "cluster_tokens": words["tokens"],
        "theta_s": own.digest.hex(),
    }
    with suppress(OSError), open(path, "a", opener=inside(path.parents[1])) as stream:
        stream.write(json.dumps(record) + "\n")


# -- its supervisor's side -------------------------------------------------------------------------


class Sidecar:
    """The link of an arena, as its supervisor sees it; used by one thread of one process."""

    def __init__(self, arena: Arena, job: LinkJob) -> None:
        """Start none yet, in an arena of this process."""
        self.arena, self._job, self.roster = arena, job, Roster()
        self._anchor = Anchor(arena)
        self._words = self._anchor.words
        self.slot = 0  # its worker slot; 0 while there is none
        self.messages = list[str]()  # for the user; the supervisor takes them out
        self._process: WorkerProcess | None = None
        self._started_ns = 0
        self._noted = set[str]()  # subjects of notes that were reported
        self._error: MlxhogError | None = None  # the last of the present link
        self._faulty = False
        self._rounds = 0
        self._watched = WatchedTime()
        self._beat_ns, self._beat_seen_s = 0, 0.0

    def start(self, slot: int) -> None:
        """Make theta_s the parameters, and start the first link in a free worker slot.

        No worker may move yet.
        """
        self._anchor.begin()
        self.slot = slot
        self._spawn()

    def _spawn(self) -> None:
        self._started_ns, self._error = monotonic_ns(), None
        self._process = WorkerProcess(
            main,
            (self._job, self.arena.handle(), self.slot),
            name="mlxhog-link",
            threads=1,
            table=self.arena.workers,
            slot=self.slot,
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
        if not self.slot or self._faulty:
            return
        rounds = self._words["rounds"]
        if self.roster.is_alone and rounds > self._rounds:
            self.roster.is_alone = False
            members = self._words["members"]
            self.messages.append(f"the link is back, in a round of {members} machines")
        self._rounds = rounds
        if self._process is not None:
            self._listen(self._process.pipe)
            self._kill_stale(self._process)
            if not self._process.is_alive():
                self._reap(self._process)
        elapsed_s = (monotonic_ns() - self._started_ns) / 1e9
        is_due = elapsed_s > self._job.cluster.round_every
        is_over = self.arena.counters.load("command") in ENDS
        if self._process is None and is_due and not is_over and not self._faulty:
            try:
                self._spawn()
            except EnvironmentLacks as lacking:  # the next try is a round later
                if (message := f"the link cannot be started now: {lacking}") not in self._noted:
                    self._noted.add(message)
                    self.messages.append(message)

    def _listen(self, pipe: Connection) -> None:
        with suppress(EOFError, OSError):  # it has ended
            while pipe.poll():
                message = pipe.recv()
                if isinstance(message, MlxhogError):
                    self._error = message
                    continue
                member, own, notes = message
                self.roster.meet(member, own)
                self.messages += [notes[subject] for subject in notes.keys() - self._noted]
                self._noted |= notes.keys()

    def _kill_stale(self, process: WorkerProcess) -> None:
        """Kill a link without a sign of life for longer than its calls may take."""
        entry, now_s = self.arena.workers.entry(self.slot), self._watched.look()
        if entry.heartbeat_ns != self._beat_ns:
            self._beat_ns, self._beat_seen_s = entry.heartbeat_ns, now_s
        limit_s = CALLS * self._job.cluster.cluster_limit_s
        if entry.state == WorkerState.STARTING:
            limit_s = max(limit_s, START_S)
        if now_s - self._beat_seen_s > limit_s:
            self._beat_seen_s = now_s
            process.kill()

    def _reap(self, process: WorkerProcess) -> None:
        state = self.arena.workers.entry(self.slot).state
        death, self._process = process.reap(), None
        self._listen(process.pipe)
        process.close()
        SeqlockCounters(self.arena, self.slot).end_update()
        if state == WorkerState.FINISHED:
            return
        log = self._job.log
        refused = isinstance(self._error, ConfigError | EnvironmentLacks)
        if self._error and refused and not self.arena.counters.load("start_ns"):
            raise self._error
        with log.open("rb") if log.exists() else BytesIO() as output:
            line = last_lines(output)[-1]
        self._faulty = death.is_fault
        if self._faulty:
            self.messages.append(
                f"the link met an error that a restart cannot cure ({line}), so this machine "
                f"trains alone; see {log}, and please report it"
            )
        elif not self.roster.is_alone:
            self.messages.append(
                f"the link ended ({death}; {line}); this machine trains alone until another one "
                "reaches the cluster"
            )
        self.roster.is_alone = True

    def still(self) -> bool:
        """Whether it changes no parameter while `pause` is set, or training is over."""
        return (
            self._process is None or self.arena.workers.entry(self.slot).phase != WorkerPhase.APPLY
        )

    @property
    def is_ready(self) -> bool:
        """Whether workers may start: this machine fits the others, or the first link has failed."""
        return self.roster.is_alone or bool(self._words["ready"])

    def play_last_round(self, until: Callable[..., bool]) -> None:
        """Let the link send what is trained, now that workers rest.

        A link that has not sent all in time is killed, so that a checkpoint knows what it has sent.

        Args:
            until: waits for a condition, at most `limit_s`, as `Session.until`.
        """
        words = self._words
        words["last"] = 1
        for word, limit_s in (
            ("last", self._job.cluster.round_every + LAST_ROUND_S),
            ("sent", LAST_ROUND_S),  # others may have committed what it does not know of yet
        ):
            if self._process is not None and words["last"]:
                until(lambda word=word: self._process is None or not words[word], limit_s=limit_s)
        if words["last"]:
            self.stop(0.0)

    def stop(self, timeout_s: float) -> None:
        """Let it leave the cluster, after the command to exit; kill it if that takes long."""
        if self._process is not None:
            self._process.reap(timeout_s)
            self._process.close()
            self._process = None
            SeqlockCounters(self.arena, self.slot).end_update()
            self.arena.workers.release(self.slot)
            self.slot = 0

    def report(self) -> dict[str, object]:
        """The machine's part in the cluster, see `Anchor.report`."""
        return {"alone": self.roster.is_alone, **self._anchor.report()}
